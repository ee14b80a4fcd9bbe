"""Data construction: preferences with explanations in, rewriting triplets with value shifts out."""
