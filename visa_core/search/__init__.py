"""Adaptive value search: find the value target that pays best where none is given."""
