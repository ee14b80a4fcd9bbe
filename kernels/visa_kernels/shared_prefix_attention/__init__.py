"""Attention of packed groups whose completions share one prompt."""
