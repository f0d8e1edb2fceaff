"""minimon: how to train an LLM monitor that works on domains it never saw. Start with tasks.py and read in the order of the README."""

__version__ = "0.1.0"
