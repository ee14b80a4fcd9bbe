"""A model's own values by pairwise comparison with default answers, judged by another model."""
