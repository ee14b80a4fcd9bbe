"""Detector, translator, fact analyzer and rewriter: each usable alone, each saved as a folder."""
