"""Metrics, baselines, tables, pictures and the report."""
