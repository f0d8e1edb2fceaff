"""Loss and AUROC on validation rows of trained tasks while a run trains: whether it has learned, and when it stops learning."""

import numpy as np
from torch.nn.functional import logsigmoid

from minimon.evaluate import read
from minimon.metrics import auroc, mean_of_defined

ROWS = 16  # a task, at most
PATIENCE = 3  # measurements without a lower loss


def validation_rows(mixture) -> list[tuple]:
    """(task, rows) of the training tasks that have validation rows."""
    found = [(task, mixture.validation_rows(task, ROWS)) for task in mixture.train]
    return [(task, rows) for task, rows in found if rows]


def validate(model, tokenizer, tasks: list[tuple], **options) -> dict[str, float]:
    """{"validation_loss", "validation_auroc"}, means over tasks; {} without tasks. options: of evaluate.read."""
    losses, areas = [], []
    for task, rows in tasks:
        reading = read(model, tokenizer, task, rows, **options)
        labels = np.array([row.label for row in rows])
        losses.append(float(-logsigmoid(reading.log_odds)[range(len(rows)), labels].mean()))
        areas.append(auroc(reading.log_odds[:, 0].numpy(), labels == 0))
    found = {"validation_loss": mean_of_defined(losses), "validation_auroc": mean_of_defined(areas)}
    return {name: value for name, value in found.items() if value is not None}


def validation_losses(log: list[dict]) -> list[list]:
    """[step, loss] of every measurement in the lines of a log; step 0 is before training."""
    losses = []
    for line in log:
        if "validation_loss_before" in line:
            losses.append([0, line["validation_loss_before"]])
        if "validation_loss" in line:
            losses.append([line["step"], line["validation_loss"]])
    return losses


def no_longer_falls(log: list[dict]) -> bool:
    """The lowest validation loss lies PATIENCE measurements back."""
    losses = [loss for _, loss in validation_losses(log)]
    return len(losses) > PATIENCE and min(losses[:-PATIENCE]) <= min(losses[-PATIENCE:])
