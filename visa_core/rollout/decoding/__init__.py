"""How the hf engine reads prompts and continues rows, one token of all rows at a time."""
