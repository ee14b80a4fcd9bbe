"""Runnable training stages of VISA, one a file."""
