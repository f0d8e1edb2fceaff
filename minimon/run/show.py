"""What a model is shown of a task's row, token by token, and what it makes of it before training."""

from minimon.batch import encode_row, task_label_ids
from minimon.evaluate import read
from minimon.lora import enable_lora


def show(model, tokenizer, task, *, limit) -> str:
    """One row of `task` as it is encoded: its text, its ids, the label tokens and their share of the probability under the base."""
    enable_lora(model, False)
    row = task.rows[0]
    encoded = encode_row(tokenizer, task, row.text, limit=limit)
    label_ids = task_label_ids(tokenizer, task)
    reading = read(model, tokenizer, task, [row], limit=limit)
    answers = []
    for i, (label, token) in enumerate(zip(task.labels, label_ids)):
        answers.append(
            f"  {label!r}: token {token} ({tokenizer.decode([token])!r}), P among the labels {reading.P[0, i]:.3f}"
        )
    gold = list(task.labels)[row.label]
    return "\n".join(
        [
            f"task {task.name!r}, row {row.where}, gold {gold!r}, {len(encoded.ids)} tokens, {encoded.left_out} left out",
            "",
            tokenizer.decode(encoded.ids),
            "",
            f"ids: {' '.join(map(str, encoded.ids))}",
            "labels at the answer position, under the base:",
            *answers,
            f"the labels have {reading.label_mass[0]:.1%} of the probability over the whole vocabulary"
            + (
                "; little is usual before training, look again at label_mass after it"
                if reading.label_mass[0] < 0.5
                else ""
            ),
        ]
    )
