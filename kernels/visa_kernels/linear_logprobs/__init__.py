"""Log-probability and entropy of chosen tokens, straight from hidden states and the head."""
