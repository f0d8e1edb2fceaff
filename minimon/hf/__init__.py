"""Hugging Face checkpoints: families, rope types, chat templates."""
