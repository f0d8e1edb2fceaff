"""What scikit-learn makes of scores, random and degenerate: python tests/golden/make_metrics.py > tests/golden/metrics.json"""

import json
import sys
import warnings

import numpy as np
import sklearn
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, brier_score_loss, roc_auc_score, roc_curve

BINS = 15
warnings.simplefilter("ignore")  # of one class: that is what is asked about


def cases():
    """(name, P(positive), whether positive)."""
    rng = np.random.default_rng(0)
    for n in (2, 3, 7, 40, 250, 400):
        for kind in ("uniform", "rounded", "two values", "separated", "reversed", "extreme"):
            y = rng.random(n) < rng.choice([0.1, 0.5, 0.8])
            y[:2] = [True, False]
            p = rng.random(n)
            p = {
                "uniform": p,
                "rounded": p.round(1) * 0.98 + 0.007,
                "two values": np.where(p < 0.5, 0.23, 0.71),
                "separated": 0.4 * p + 0.58 * y,
                "reversed": 0.4 * p + 0.58 * ~y,
                "extreme": np.where(y ^ (p < 0.1), 1 - 1e-7 * p, 1e-7 * p),
            }[kind]
            yield f"{n} {kind}", p, y
    for name, p, y in (
        ("all equal", [0.3] * 6, [1, 0, 0, 1, 0, 0]),
        ("all equal, a half", [0.5] * 4, [1, 0, 1, 0]),
        ("positives alone", [0.1, 0.7, 0.9], [1, 1, 1]),
        ("negatives alone", [0.1, 0.7, 0.9], [0, 0, 0]),
        ("one row", [0.2], [1]),
        ("zeros and ones", [0.0, 1.0, 1.0, 0.0], [0, 1, 0, 1]),
        ("all right", [1.0, 0.0], [1, 0]),
        ("all wrong", [0.0, 1.0], [1, 0]),
    ):
        yield name, np.array(p), np.array(y, dtype=bool)


def measured(p, y) -> dict:
    counts = np.bincount(np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], p), minlength=BINS)
    true, mean = calibration_curve(y, p, n_bins=BINS) if len(set(y)) == 2 else (None, None)
    fpr, tpr, _ = roc_curve(y, p, drop_intermediate=False)
    area = roc_auc_score(y, p)
    return {
        "auroc": None if np.isnan(area) else area,
        "brier": brier_score_loss(y, p, pos_label=True),
        "ece": None if true is None else float(np.abs(true - mean) @ counts[counts > 0] / len(p)),
        "tpr_at_1pct_fpr": None if np.isnan(tpr).any() or np.isnan(fpr).any() else tpr[fpr <= 0.01].max(),
        "performance": accuracy_score(y, p > 0.5) if (p != 0.5).all() else None,
    }


if __name__ == "__main__":
    found = [
        {"case": name, "p": p.tolist(), "y": y.astype(int).tolist(), **measured(p, y)}
        for name, p, y in cases()
    ]
    lines = ",\n".join("  " + json.dumps(case) for case in found)
    sys.stdout.write(
        f'{{"made_by": "python tests/golden/make_metrics.py, scikit-learn {sklearn.__version__}", "cases": [\n{lines}\n]}}\n'
    )
