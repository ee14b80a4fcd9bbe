"""One decoding step of rows that share their prompts."""
