"""Detector, translator, fact analyzer and rewriter: each usable alone, saved and loaded as a folder."""
