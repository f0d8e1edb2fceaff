"""What a model is shown of a task's row, token by token, and what it makes of it before training."""

from minimon.batch import encode_row, row_limit, task_label_ids
from minimon.checkpoint import load_model
from minimon.evaluate import read
from minimon.run.cli import shipped
from minimon.run.load import named_task
from minimon.tokenizer import load_tokenizer


def show(settings, device: str) -> str:
    """One row of the task of --show as it is encoded: its text, its ids, the label tokens and their share of
    the probability under the base. settings: train.py's."""
    task = named_task(settings.show)
    model = load_model(shipped(settings.model), device=device)
    tokenizer = load_tokenizer(shipped(settings.model), date=settings.date)
    row, limit = task.rows[0], row_limit(model.config, settings.max_tokens)
    encoded = encode_row(tokenizer, task, row.text, limit=limit)
    reading = read(model, tokenizer, task, [row], limit=limit)
    lines = [
        f"task {task.name!r}, row {row.where}, gold {list(task.labels)[row.label]!r}, {len(encoded.ids)} tokens, "
        f"{encoded.left_out} left out",
        "",
        tokenizer.decode(encoded.ids),
        "",
        f"ids: {' '.join(map(str, encoded.ids))}",
        "labels at the answer position, under the base:",
    ]
    for label, token, P in zip(task.labels, task_label_ids(tokenizer, task), reading.P[0]):
        lines.append(
            f"  {label!r}: token {token} ({tokenizer.decode([token])!r}), P among the labels {P:.3f}"
        )
    mass = reading.label_mass[0]
    advice = "; little is usual before training, look again at label_mass after it" if mass < 0.5 else ""
    lines.append(f"the labels have {mass:.1%} of the probability over the whole vocabulary{advice}")
    return "\n".join(lines)
