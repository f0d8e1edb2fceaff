"""What a table shows badly: uplift per task with intervals, ROC on a log FPR axis, reliability. As text for report.md, and as report.png.

Tasks are pooled for the ROC after ranking within each task, as for the TPR at 1% FPR; for reliability P itself is pooled.
"""

from pathlib import Path

import numpy as np

from minimon.metrics import Scores, ranks, tpr_at_fpr

RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)    # FPRs of the table
BINS = 10
WIDTH = 41                                     # characters of the uplift's axis
SIDES = (("base", "0.55"), ("adapter", "tab:blue"))


def uplift_text(report: dict) -> str:
    """A line a task: o its uplift in AUROC, its interval drawn beside it, | at zero."""
    tasks = [task for part in report["splits"].values() for task in part["tasks"] if task["uplift"]["ci95"]]
    if not tasks:
        return ""
    bounds = [bound for task in tasks for bound in task["uplift"]["ci95"]] + [0.0]
    low, high = min(bounds), max(bounds)
    width = max(len(task["task"]) for task in tasks)

    def at(value):
        return round((value - low) / (high - low or 1) * (WIDTH - 1))

    lines = []
    for split, part in report["splits"].items():
        lines.append(f"{split:<{width}}  {low:<+{WIDTH // 2}.2f}{high:>+{WIDTH - WIDTH // 2}.2f}")
        for task in part["tasks"]:
            if task["uplift"]["ci95"]:
                (left, right), line = map(at, task["uplift"]["ci95"]), [" "] * WIDTH
                line[left:right + 1] = "-" * (right + 1 - left)
                line[at(0.0)] = "|"
                line[at(task["uplift"]["auroc"])] = "o"
                lines.append(f"{task['task']:<{width}}  {''.join(line)}  {task['uplift']['auroc']:+.3f}")
    return "\n".join(lines)


def roc_rows(scores: dict[str, dict[str, list[Scores]]]) -> list[list[str]]:
    """[split / group, base or adapter, negatives, TPR at each of RATES]; - where the negatives are fewer than 1 / FPR."""
    rows = []
    for name, tasks in groups(scores):
        for which, _ in SIDES:
            pooled, positives = pool(tasks, which, ranked=True)
            negatives = int((~positives).sum())
            rates = [tpr_at_fpr(pooled, positives, rate) if negatives >= 1 / rate else None for rate in RATES]
            rows.append([name, which, str(negatives), *("-" if rate is None else f"{rate:.3f}" for rate in rates)])
    return rows


def reliability_rows(scores: dict[str, dict[str, list[Scores]]]) -> list[list[str]]:
    """[split, bin of P, then of base and of adapter the rows in it, their mean P and the share of positives among them]."""
    rows = []
    for split, parts in scores.items():
        tasks = [task for members in parts.values() for task in members]
        sides = [reliability(*pool(tasks, which)) for which, _ in SIDES]
        for b in range(BINS):
            cells = [cell for counts, mean, share in sides
                     for cell in (str(counts[b]), *(f"{value[b]:.3f}" if counts[b] else "-" for value in (mean, share)))]
            rows.append([split, f"{b / BINS:.1f} to {(b + 1) / BINS:.1f}", *cells])
    return rows


def write_figure(report: dict, path: Path, scores: dict | None = None) -> bool:
    """Uplift, and with the scores ROC and reliability. False where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    tasks = [(split, task) for split, part in report["splits"].items() for task in part["tasks"] if task["uplift"]["ci95"]]
    figure = Figure(figsize=(15 if scores else 6, max(4.5, 0.16 * len(tasks) + 1)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3 if scores else 1, squeeze=False)[0]
    draw_uplift(axes[0], tasks)
    if scores:
        draw_roc(axes[1], scores)
        draw_reliability(axes[2], scores)
    for part in axes:
        for side in ("top", "right"):
            part.spines[side].set_visible(False)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return True


def draw_uplift(axes, tasks) -> None:
    splits = list(dict.fromkeys(split for split, _ in tasks))
    for i, (split, task) in enumerate(tasks):
        value, (low, high) = task["uplift"]["auroc"], task["uplift"]["ci95"]
        axes.errorbar(value, i, xerr=[[max(value - low, 0)], [max(high - value, 0)]], fmt="o", markersize=3, linewidth=1,
                      color=f"C{splits.index(split)}")
    for i, split in enumerate(splits):
        axes.plot([], [], "o", color=f"C{i}", label=split)
    axes.axvline(0, color="0.8", linewidth=1, zorder=0)
    axes.set_yticks(range(len(tasks)), [task["task"] for _, task in tasks], fontsize=6 if len(tasks) > 20 else 8)
    axes.invert_yaxis()
    axes.set_xlabel("AUROC, adapter minus base, 95% interval")
    if tasks:
        axes.legend(frameon=False, fontsize=8)


def draw_roc(axes, scores) -> None:
    fewest = 0.5
    for i, (name, tasks) in enumerate(groups(scores)):
        for which, _ in SIDES if 0 < sum(task.positives.sum() for task in tasks) < sum(map(len, (task.labels for task in tasks))) else ():
            fpr, tpr = roc(*pool(tasks, which, ranked=True))
            fewest = min(fewest, fpr[fpr > 0].min(initial=1.0))
            axes.step(fpr, tpr, where="post", color=f"C{i}", linestyle=":" if which == "base" else "-", linewidth=1.2,
                      label=name if which == "adapter" else None)
    grid = np.geomspace(fewest, 1, 50)
    axes.plot(grid, grid, color="0.8", linewidth=1, zorder=0)
    axes.set_xscale("log")
    axes.set_xlim(fewest, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("FPR, log axis")
    axes.set_ylabel("TPR (dotted: base)")
    if len(axes.lines) > 1:
        axes.legend(frameon=False, fontsize=8, loc="upper left")


def draw_reliability(axes, scores) -> None:
    tasks = [task for _, members in groups(scores) for task in members]
    for which, color in SIDES:
        counts, mean, share = reliability(*pool(tasks, which))
        axes.plot(mean[counts > 0], share[counts > 0], "o-", markersize=4, color=color, label=which)
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1, zorder=0)
    axes.set_xlabel("mean P of a bin, all splits")
    axes.set_ylabel("share of positives")
    axes.legend(frameon=False, fontsize=8, loc="upper left")


# ---- numbers -------------------------------------------------------------------------------------------------------------


def groups(scores) -> list[tuple[str, list[Scores]]]:
    return [(f"{split} / {group}" if group else split, tasks) for split, parts in scores.items() for group, tasks in parts.items()]


def pool(tasks: list[Scores], which: str, ranked: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(n,) scores of the positive label and (n,) bool, of all rows of the tasks."""
    p = [task.of(which)[:, 0].astype(float) for task in tasks]
    return np.concatenate([ranks(each) if ranked else each for each in p]), np.concatenate([task.positives for task in tasks])


def roc(scores: np.ndarray, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """FPR and TPR at every threshold, equal scores together, from (0, 0) to (1, 1)."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.diff(scores[order]) != 0, True)
    hits, misses = (np.concatenate([[0], np.cumsum(which[order])[ends]]) for which in (positives, ~positives))
    return misses / max(misses[-1], 1), hits / max(hits[-1], 1)


def reliability(p: np.ndarray, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each of BINS equal-width bins of P: rows, mean P, share of positives (0 where there are no rows)."""
    which = np.minimum((p * BINS).astype(int), BINS - 1)
    counts, mass, hits = (np.bincount(which, w, BINS) for w in (np.ones_like(p), p, positives.astype(float)))
    return counts.astype(int), mass / np.maximum(counts, 1), hits / np.maximum(counts, 1)
