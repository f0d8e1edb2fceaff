"""What a person reads before training: how a run begins; what a model is shown of a task's row, token by token, and makes of it."""

from minimon.batch import encode_row, row_limit, task_label_ids
from minimon.evaluate import read
from minimon.files import resolve
from minimon.run.load import load_base, named_task
from minimon.run.settings import is_shipped
from minimon.tokenizer import load_tokenizer


def show(settings, device: str) -> str:
    """One row of the task of --show as it is encoded: its text, its ids, the label tokens and their share of
    the probability under the base. settings: train.py's."""
    task = named_task(settings.show)
    if not task.rows:
        raise ValueError(f"{task.where}: task {task.name!r}: expected a row to show, got none")
    base = resolve(settings.model)
    model = load_base(base, dtype=settings.dtype, device=device)
    tokenizer = load_tokenizer(base, date=settings.date)
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


def opening_lines(settings, directory, model, done: int, labels: dict | None) -> list[str]:
    """What train.py says before its first step. labels: how good the base's own are, None where gold ones are trained on."""
    lines = []
    if labels:
        lines.append(
            f"labels of the base's own: {labels['right']:.3f} of {labels['rows']} right, "
            f"{labels['well_formed']:.3f} well-formed"
        )
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lines.append(
        f"{settings.model}: {frozen:,} frozen parameters, {trained:,} in the adapter; writing to {directory}"
    )
    if is_shipped(settings.model):
        lines.append("the shipped base knows a small made-up world only; a real model is named with --model")
    if settings.resume:
        lines.append(f"goes on after step {done}" if done else "nothing was saved there: a new run")
    return lines
