"""Packed rows that begin with the same tokens."""
