"""Rewards to advantages within groups."""
