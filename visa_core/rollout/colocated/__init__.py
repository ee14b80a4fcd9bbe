"""vLLM inside the training process, on the weights that are being trained."""
