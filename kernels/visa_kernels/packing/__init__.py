"""Packing of sequences into bins of a token budget."""
