"""Settings that suit a base and its rows, where the command line leaves them open."""

import math
from dataclasses import replace

from minimon.files import resolve
from minimon.hf.families import read_config
from minimon.run.cli import shipped

SHIPPED = {"lr": 3e-3, "r": 8, "lora_alpha": 16.0, "batch_size": 24, "group_size": 8}  # the shipped base
PRETRAINED = {"r": 16, "lora_alpha": 32.0, "batch_size": 32, "group_size": 4}  # any other
MEASURED_LR, MEASURED_WIDTH = 1.5e-3, 576  # of SmolLM2-135M; in inverse proportion to the width elsewhere
HIGHEST_LR = 3e-3
QUICK = {"mixture": "data/mixtures/quick.toml", "steps": 150, "save_every": 50}
MOST_STEPS, MOST_EPOCHS = 400, 10  # whichever is less, where neither is given


def with_recipe(settings):
    """train.py's settings, what is open (None) filled in."""
    if settings.quick:
        settings = replace(settings, **QUICK)
    recipe = SHIPPED
    if settings.model != "data/base":
        recipe = {**PRETRAINED, "lr": settings.lr or learning_rate(settings.model)}
    return replace(
        settings, **{name: value for name, value in recipe.items() if getattr(settings, name) is None}
    )


def learning_rate(model: str) -> float:
    """Two digits: what suits a base of this width."""
    width = read_config(resolve(shipped(model))).hidden_size
    return float(f"{min(HIGHEST_LR, MEASURED_LR * MEASURED_WIDTH / width):.1e}")


def with_steps(settings, mixture):
    """The same, its steps those of --epochs over the mixture's training rows, or 400, or fewer where rows are few."""
    if settings.steps is not None:
        return settings
    rows = sum(len(mixture.train_rows(task, settings.seed)) for task in mixture.train)
    if settings.epochs is not None:
        return replace(settings, steps=max(1, math.ceil(settings.epochs * rows / settings.batch_size)))
    return replace(settings, steps=min(MOST_STEPS, math.ceil(MOST_EPOCHS * rows / settings.batch_size)))
