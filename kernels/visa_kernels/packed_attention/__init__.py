"""Attention of packed sequences: bidirectional or causal, with or without a window."""
