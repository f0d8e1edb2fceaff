"""Temporary: the interface of the new core on the old one. Goes when that has landed."""

import numpy as np

from minimon import evaluate as core


def row_limit(model, tokenizer, max_tokens):
    core.limit_rows(tokenizer, model, max_tokens)
    return None


def read(model, tokenizer, task, rows, *, limit=None, batch_tokens=None, on_rows=None):
    reading = core.read(model, tokenizer, task, rows, batch_tokens=batch_tokens, on_rows=on_rows)
    if hasattr(reading, "log_odds"):
        return reading.log_odds.double().numpy(), reading.left_out.numpy()
    P = np.clip(reading.P.double().numpy(), 1e-38, None)
    return np.log(P) - np.log(np.maximum(1 - P, 1e-38)), reading.left_out.numpy()
