"""Annotators: a comparison of two responses in, a vector of value levels for each of them out."""
