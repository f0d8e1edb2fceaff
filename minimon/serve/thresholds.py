"""A threshold for one task, picked on labelled rows at a false-positive rate; a temperature, if asked.

    decision: log_odds > threshold
    z_i = log P(label i) / T,     log_odds_i = z_i - log sum_{j != i} exp z_j,     T = 1 unless fitted

n rows, N labels. The threshold is that of split conformal prediction (Papadopoulos et al., 2002): of m
negatives the k-th highest score, k = floor(fpr (m + 1)), so that a new negative exceeds it with probability
fpr at most. Where the labels separate completely it lies halfway between them. It is stored in
calibration.json beside the adapter, by task, and counts for that adapter and that prompt alone.
"""

import math
from pathlib import Path

import numpy as np

from minimon.files import read_optional, write_json
from minimon.metrics import DRAWS, ece, percentiles, sigmoid
from minimon.run.load import trained_before
from minimon.run.lock import locked
from minimon.run.processes import from_first
from minimon.tasks import Row, Task

NAME = "calibration.json"
SCALE = "log_odds"  # what a stored threshold is compared with
AGAIN = "pick it again with --calibrate and --overwrite, or give --threshold"
TEMPERATURES = np.geomspace(0.05, 20, 1000)  # that are tried, each 0.6% above the last


def tempered(log_odds, temperature: float):
    """(n, N) log-odds of each label against the rest -> the same at a temperature, in fp64; of two labels a
    division."""
    z = -np.logaddexp(0.0, -log_odds.astype(float)) / temperature  # (n, N) log P / T
    others = [np.logaddexp.reduce(np.delete(z, i, axis=1), axis=1) for i in range(z.shape[1])]
    return z - np.stack(others, axis=1)


def calibrate(
    log_odds,
    labels,
    clusters,
    *,
    fpr: float,
    fit: bool = False,
) -> dict:
    """(n, N) at temperature 1, (n,) label indices, (n,) texts -> the threshold, its interval, FPR and TPR at
    it.

    threshold_ci95 and tpr_ci95: percentile bootstrap over texts, the threshold picked anew each draw;
    fpr_ci95: Wilson's interval (1927). fit: with the temperature of least negative log-likelihood (Guo et
    al., 2017). separated: every positive is above every negative. Raises ValueError with fewer than 1 / fpr -
    1 negatives, or without a positive."""
    positives = labels == 0
    negatives, needed = int((~positives).sum()), math.ceil(1 / fpr - 1 - 1e-9)
    if negatives < needed or not positives.any():
        raise ValueError(
            f"expected a positive and at least {needed} negatives to pick a threshold at an FPR of {fpr:g}, "
            f"got {positives.sum()} and {negatives}; give the task more rows, or ask for a higher --fpr"
        )
    temperature = best_temperature(log_odds, labels) if fit else 1.0
    scores = tempered(log_odds, temperature)[:, 0].round(6)
    threshold = pick(scores, positives, fpr)
    names, cluster = np.unique(clusters, return_inverse=True)
    rng = np.random.default_rng(0)
    thresholds, rates = [], []
    for _ in range(DRAWS):
        times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)))[cluster]
        drawn, positive = np.repeat(scores, times), np.repeat(positives, times)
        if positive.any() and not positive.all():
            thresholds.append(pick(drawn, positive, fpr))
            rates.append((drawn[positive] > thresholds[-1]).mean())
    above = int((scores[~positives] > threshold).sum())
    return {
        "scale": SCALE,
        "threshold": threshold,
        "threshold_ci95": percentiles(np.array(thresholds)),
        "asked_fpr": fpr,
        "fpr": above / negatives,
        "fpr_ci95": wilson(above, negatives),
        "tpr": float((scores[positives] > threshold).mean()),
        "tpr_ci95": percentiles(np.array(rates)),
        "positives": int(positives.sum()),
        "negatives": negatives,
        "separated": bool(scores[positives].min() > scores[~positives].max()),
        "temperature": temperature,
        "ece": ece(sigmoid(scores), positives),
        "ece_at_temperature_1": ece(sigmoid(tempered(log_odds, 1.0)[:, 0]), positives),
    }


def pick(scores, positives, fpr: float) -> float:
    """The k-th highest of the negatives; between the labels where they separate."""
    negatives = np.sort(scores[~positives])[::-1]
    lowest, highest = scores[positives].min(), negatives[0]
    if lowest > highest:
        return float((lowest + highest) / 2)
    k = max(1, math.floor(fpr * (len(negatives) + 1) + 1e-9))
    return float(negatives[k - 1])


def best_temperature(log_odds, labels) -> float:
    rows = np.arange(len(labels))
    losses = []
    for temperature in TEMPERATURES:
        gold = tempered(log_odds, temperature)[rows, labels]
        losses.append(np.logaddexp(0.0, -gold).mean())
    return round(float(TEMPERATURES[np.argmin(losses)]), 4)


def wilson(hits: int, n: int, z: float = 1.959964) -> list[float]:
    centre, half = hits + z * z / 2, z * math.sqrt(hits * (n - hits) / n + z * z / 4)
    return [max(0.0, (centre - half) / (n + z * z)), min(1.0, (centre + half) / (n + z * z))]


# ---- for a run ---------------------------------------------------------------------------------------------


def calibrate_run(monitor, directory, *, fpr: float, fit: bool = False, on_rows=None) -> str:
    """`calibrate` on the rows of the monitor's task -> what a person is shown of it; stored beside the
    adapter.

    Raises ValueError for a row that the run was trained on, whatever file it comes from: its score says
    nothing about new rows."""
    task, (before, all_read) = monitor.task, trained_before(directory)
    trained = {row.text: row.where for old in before for row in old.rows if row.side == "train"}
    rows = calibration_rows(task)
    seen = [row for row in rows if row.text in trained]
    if seen:
        raise ValueError(
            f"{seen[0].where}: task {task.name!r}: expected rows that this run was not trained on, got "
            f"{len(seen)} of {len(rows)} that it was, this one at {trained[seen[0].text]}; use other rows"
        )
    log_odds, left_out = monitor.read([row.text for row in rows], on_rows)
    labels = np.array([row.label for row in rows])
    texts = np.array([row.text for row in rows], dtype=object)
    try:
        found = calibrate(log_odds, labels, texts, fpr=fpr, fit=fit)
    except ValueError as error:
        raise ValueError(f"{task.where}: {rows[0].side} rows: {error}") from error
    entry = {
        "adapter": monitor.adapter,
        "model": monitor.settings.model,
        "file": task.path.name,
        "rows": rows[0].side,
        "rows_cut": int((left_out > 0).sum()),
        "checked": all_read,
        **found,
    }
    with locked(directory):
        path = from_first(lambda: save_calibration(directory, task, entry))
    return f"{calibration_lines(task, entry)}\nstored in {path}"


def calibration_rows(task: Task) -> list[Row]:
    for side in ("validation", "test"):
        rows = [row for row in task.rows if row.side == side]
        if rows:
            return rows
    raise ValueError(
        f"{task.where}: task {task.name!r}: expected validation or test rows to calibrate on, got neither"
    )


def calibration_lines(task: Task, entry: dict) -> str:
    """What a person is shown of a calibration."""
    shown = {}
    for key in ("threshold", "fpr", "tpr"):
        low, high = entry[f"{key}_ci95"]
        shown[key] = f"[{low:.4g}, {high:.4g}]"
    at = "" if entry["temperature"] == 1 else " at that temperature"
    P = sigmoid(np.float64(entry["threshold"]))
    side = f"{entry['rows']} rows"
    if entry["rows"] == "test":
        side += ", which the report has measured as well; give the task a validation share"
    lines = [
        f"{task.name}: {next(iter(task.labels))} where log-odds > {entry['threshold']:.6g} "
        f"{shown['threshold']} (P {P:.4g}{at}), picked on {entry['negatives']} negatives and "
        f"{entry['positives']} positives ({side})",
        f"there FPR {entry['fpr']:.4f} {shown['fpr']} and TPR {entry['tpr']:.3f} {shown['tpr']}; "
        f"temperature {entry['temperature']:g}",
    ]
    if entry["separated"]:
        advice = "rows that are harder to judge would tell where it belongs"
        lines.append(f"warning: these rows separate completely, the threshold is halfway between; {advice}")
    if not entry["checked"]:
        lines.append("warning: the run's training rows cannot be read; these may be among them")
    return "\n".join(lines)


def threshold_line(monitor) -> str:
    """Where the decisions of a monitor come from."""
    if monitor.threshold is None:
        advice = "pick one with --calibrate or --threshold"
        return f"no threshold for task {monitor.task.name!r} beside the adapter: decision is null; {advice}"
    entry, source = monitor.calibration, "--threshold"
    if entry:
        rows = f"{entry['negatives'] + entry['positives']} rows of {entry['file']}"
        source = f"{NAME}, for an FPR of {entry['asked_fpr']:g}, picked on {rows}; the rate holds for texts like those"
    return f"decision: log-odds > {monitor.threshold:.6g} ({source})"


def refuse_calibrated(directory, task: Task) -> None:
    path = Path(directory) / NAME
    if task.name in read_optional(path):
        raise ValueError(f"{path}: holds a threshold for task {task.name!r}; give --overwrite to replace it")


def save_calibration(directory, task: Task, entry: dict) -> Path:
    """One task's entry of calibration.json; the others stay."""
    path = Path(directory) / NAME
    write_json(path, read_optional(path) | {task.name: {**question(task), **entry}})
    return path


def question(task: Task) -> dict:
    """What a threshold counts for, beside its adapter."""
    return {"prompt": task.prompt, "prompt_position": task.prompt_position, "labels": list(task.labels)}


def find_calibration(directory, task: Task, adapter: str) -> dict | None:
    """The task's entry, None where it has none. Raises ValueError where it was picked for another adapter,
    prompt or labels."""
    path = Path(directory) / NAME
    entry = read_optional(path).get(task.name)
    if entry is None:
        return None
    if not isinstance(entry, dict):
        entry = {}
    for key, value in {"scale": SCALE, "adapter": adapter, **question(task)}.items():
        if entry.get(key) != value:
            raise ValueError(
                f"{path}: expected a threshold for {task.name!r} with the same {key}, got another's; {AGAIN}"
            )
    numbers = [entry.get("threshold"), entry.get("temperature")]
    if not all(type(value) is float and abs(value) < 1e6 for value in numbers) or numbers[1] <= 0:
        raise ValueError(
            f"{path}: expected a threshold and a temperature for task {task.name!r}, got {entry!r}; {AGAIN}"
        )
    return entry
