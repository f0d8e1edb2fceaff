"""Loss and AUROC on validation rows of trained tasks while a run trains: whether it has learned, and when it stops learning."""

from statistics import fmean

import numpy as np

from minimon.evaluate import read
from minimon.metrics import auroc

ROWS = 16  # a task, at most
PATIENCE = 3  # measurements without a lower loss


class Validation:
    """measure() -> {"validation_loss", "validation_auroc"}, means over tasks; {} where no task has validation rows."""

    def __init__(self, model, tokenizer, mixture, log: list[dict], *, limit, batch_tokens=None):
        """log: lines of the run so far, whose measurements count."""
        self.model, self.tokenizer = model, tokenizer
        self.options = {"limit": limit, "batch_tokens": batch_tokens}
        self.rows = {}
        for task in mixture.train:
            rows = mixture.validation_rows(task, ROWS)
            if rows:
                self.rows[task.name] = (task, rows)
        self.losses: list[list] = []  # [step, loss]
        for line in log:
            if "validation_loss_before" in line:
                self.losses.append([0, line["validation_loss_before"]])
            if "validation_loss" in line:
                self.losses.append([line["step"], line["validation_loss"]])

    def measure(self, step: int) -> dict[str, float]:
        if not self.rows:
            return {}
        losses, areas = [], []
        for task, rows in self.rows.values():
            reading = read(self.model, self.tokenizer, task, rows, **self.options)
            labels = np.array([row.label for row in rows])
            losses.append(float(-reading.P.log()[range(len(rows)), labels].mean()))
            area = auroc(reading.log_odds[:, 0].numpy(), labels == 0)
            if area is not None:
                areas.append(area)
        loss = round(fmean(losses), 6)  # as in the log
        self.losses.append([step, loss])
        measured = {"validation_loss": loss}
        if areas:
            measured["validation_auroc"] = fmean(areas)
        return measured

    @property
    def is_over(self) -> bool:
        """The lowest loss lies PATIENCE measurements back."""
        losses = [loss for _, loss in self.losses]
        return len(losses) > PATIENCE and min(losses[:-PATIENCE]) <= min(losses[-PATIENCE:])
