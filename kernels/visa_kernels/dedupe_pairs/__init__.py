"""Pairs of texts or of token rows that occur more than once."""
