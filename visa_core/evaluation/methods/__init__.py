"""Methods beside each other, over models and seeds: every rewrite kept, then tables and figures."""
