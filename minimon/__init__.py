"""minimon: how to train an LLM monitor that works on domains it never saw.

Start with train.py and read on in the order of the README.

from minimon import Monitor                    # a trained monitor in a program, see serve/monitor.py
"""

from importlib import import_module

__version__ = "0.1.0"


def __getattr__(name: str):
    """Monitor is imported when it is first asked for: it needs torch, the package alone does not."""
    if name == "Monitor":
        return import_module("minimon.serve.monitor").Monitor
    raise AttributeError(f"module 'minimon' has no attribute {name!r}")
