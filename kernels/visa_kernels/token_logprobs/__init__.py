"""Log-probability and entropy of chosen tokens."""
