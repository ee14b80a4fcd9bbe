"""Benchmarks of the ops: a registry of cases, a runner, results by device."""
