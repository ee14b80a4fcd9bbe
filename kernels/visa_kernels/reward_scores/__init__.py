"""Outputs of detector and NLI model to rewards and advantages."""
