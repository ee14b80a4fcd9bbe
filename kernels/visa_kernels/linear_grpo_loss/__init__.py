"""Policy loss straight from hidden states and the head, its gradients made in the forward pass."""
