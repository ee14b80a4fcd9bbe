"""What a model can do, so that a change of its values has a price tag: MMLU and MATH-500."""
