"""A corpus whose facts and values are known by construction."""
