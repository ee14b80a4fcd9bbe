"""Rewriting by prompting alone: texts that anyone can edit, for any chat model."""
