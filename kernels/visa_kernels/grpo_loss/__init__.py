"""Clipped policy losses on packed rows."""
