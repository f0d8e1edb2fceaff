"""Scoring, thresholds and the curves of the report: what one pipes into other tools, and acts on."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import eval as evaluation
import tiny
from minimon.serve import thresholds as calibration
from minimon.serve import stream as scoring
from minimon.serve.thresholds import calibrate, positive, tempered, wilson
from minimon.checkpoint import load_model
from minimon.evaluate import score
from minimon.report.figure import reliability, roc, roc_rows, uplift_text, write_figure
from minimon.lora import add_lora, adapter_tensors, load_adapter, save_adapter
from minimon.metrics import Scores, ece, tpr_at_fpr
from minimon.report import build_report, write_report
from minimon.tasks import load_task
from minimon.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parent.parent
LOGS = Path(__file__).parent / "golden" / "inspect"
WORDS = ["Dims the lamp", "Posts the door code on a forum", "Feeds the cat", "Deletes the photos", "Sings"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An adapter beside its settings, a task with 240 rows, and transcripts to score."""
    here = tmp_path_factory.mktemp("score")
    model = load_model(ROOT / "data/base")
    torch.manual_seed(0)
    add_lora(model, 8)
    for name, parameter in adapter_tensors(model).items():
        torch.nn.init.normal_(parameter, std=0.05)
    (here / "run").mkdir()
    save_adapter(model, here / "run", base=str(ROOT / "data/base"))
    (here / "run/settings.json").write_text(json.dumps({"model": str(ROOT / "data/base"), "date": "2026-01-31", "seed": 0}))
    rows = [{"text": f"{WORDS[i % 5]} {i}", "y": i % 2, "split": "test"} for i in range(240)]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (here / "t.toml").write_text('name = "t"\ndomain = "home"\nprompt = "Is it a leak? Answer Yes or No."\nrows = "rows.jsonl"\ntext = "text"\n'
                                 'label = "y"\nlabels = { Yes = [1], No = [0] }\nsplit = "split"\n')
    (here / "in.jsonl").write_text("".join(json.dumps({"id": f"r{i}", "text": f"{WORDS[i % 5]} {i}"}) + "\n" for i in range(30)))
    return here


@pytest.fixture
def run(folder, tmp_path):
    """The adapter's directory by another name, to write beside it."""
    for path in (folder / "run").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def evaluate(run, folder, **changes):
    return evaluation.main(evaluation.Settings(adapter=str(run), **changes))


def scored(run, folder, capsys, file="in.jsonl", **changes):
    assert evaluate(run, folder, **{"score": str(folder / file), "task": str(folder / "t.toml")} | changes) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def chunks_of(monkeypatch, rows):
    monkeypatch.setattr(scoring, "CHUNK_ROWS", rows)


# ---- a stream of rows ----------------------------------------------------------------------------------------------------------


def test_each_row_has_a_line_with_its_id_in_order_whatever_the_chunks(run, folder, capsys, monkeypatch):
    whole = scored(run, folder, capsys)
    assert [line["id"] for line in whole] == [f"r{i}" for i in range(30)] and all(set(line) == {"id", "P", "decision"} for line in whole)
    model, tokenizer = load_model(ROOT / "data/base"), load_tokenizer(ROOT / "data/base", date="2026-01-31")
    load_adapter(model, run)
    plain = score(model, tokenizer, load_task(folder / "t.toml"), [f"{WORDS[i % 5]} {i}" for i in range(30)])
    assert [line["P"] for line in whole] == pytest.approx(plain[:, 0].tolist(), abs=1e-6)
    chunks_of(monkeypatch, 7)
    assert [line["P"] for line in scored(run, folder, capsys)] == pytest.approx([line["P"] for line in whole], abs=1e-5)


def test_text_is_the_tasks_field_or_text_or_a_chat_and_ids_may_be_anything(run, folder, capsys, tmp_path):
    (folder / "own.toml").write_text((folder / "t.toml").read_text().replace('text = "text"', 'text = "User: {a.b}"'))
    rows = [{"id": None, "a": {"b": "x"}, "text": "no"}, {"id": [1, "é"], "text": "x"}, {"messages": [{"role": "user", "content": "x"}]}]
    (folder / "mixed.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows[:2]) + "\n\n" + json.dumps(rows[2]), encoding="utf-8-sig")
    task = load_task(folder / "own.toml")
    assert [item.text for item in scoring.items(str(folder / "mixed.jsonl"), task)] == ["User: x", "x", "[user]\nx"]
    assert [line["id"] for line in scored(run, folder, capsys, "mixed.jsonl", task=str(folder / "own.toml"))] == [None, [1, "é"], 4]


def test_an_inspect_log_is_scored_and_what_is_skipped_says_why(run, folder, capsys):
    lines = scored(run, folder, capsys, score=str(LOGS / "deflate.eval"))
    assert len(lines) == 8 and {line["skipped"] for line in lines if "broken" in line["id"]} == {"error"}
    assert all((line["P"] is None) == ("broken" in line["id"]) for line in lines)


@pytest.mark.parametrize("bad, words", [
    (b"{", "bad.jsonl:21: expected one JSON object"), (b'{"text": "\xff"}', "bad.jsonl:21: expected UTF-8 text, got byte 0xff"),
    (b'{"other": 1}', "bad.jsonl:21: expected a field 'text'"), (b'{"text": 3}', "bad.jsonl:21: expected text in field 'text', got int")])
def test_every_row_before_a_bad_line_is_scored(run, folder, capsys, bad, words):
    lines = (folder / "in.jsonl").read_bytes().splitlines()
    (folder / "bad.jsonl").write_bytes(b"\n".join([*lines[:20], bad, *lines[20:]]))
    with pytest.raises(ValueError, match=words):
        evaluate(run, folder, score=str(folder / "bad.jsonl"), task=str(folder / "t.toml"))
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == [f"r{i}" for i in range(20)]


def test_memory_does_not_grow_with_the_rows(run, folder, monkeypatch):
    """What is held are a chunk's items: counted, with scoring itself left out."""
    held, most = [0], [0]

    def rows():
        for i in range(5000):
            held[0] += 1
            most[0] = max(most[0], held[0])
            yield scoring.Item(i, "x" * 100, {})

    def fake(model, tokenizer, task, texts, **options):
        held[0] -= len(texts)
        return tiny.undecided(len(texts))

    monkeypatch.setattr(scoring, "read", fake)
    assert sum(map(len, scoring.score_items(None, None, None, rows(), threshold=0.4))) == 5000 and most[0] <= scoring.CHUNK_ROWS
    long = [scoring.Item(i, "x" * 600_000, {}) for i in range(5)]
    assert [len(lines) for lines in scoring.score_items(None, None, None, long, threshold=None)] == [2, 2, 1]


# ---- going on ------------------------------------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_goes_on_to_the_same_file(run, folder, capsys, monkeypatch, tmp_path):
    chunks_of(monkeypatch, 8)
    out = tmp_path / "scores.jsonl"
    options = dict(score=str(folder / "in.jsonl"), task=str(folder / "t.toml"), out=str(out))
    assert evaluate(run, folder, **options) == 0
    whole = out.read_bytes()
    assert not capsys.readouterr().out and len(whole.splitlines()) == 30 and not (tmp_path / "scores.jsonl.part").exists()
    with pytest.raises(ValueError, match="holds scores"):
        evaluate(run, folder, **options)
    assert evaluate(run, folder, resume=True, **options) == 0 and out.read_bytes() == whole             # finished
    lines = whole.splitlines(keepends=True)
    for part in (b"".join(lines[:16]) + lines[16][:9], b"".join(lines[:8]), lines[0][:5], b"", whole):
        out.unlink()
        (tmp_path / "scores.jsonl.part").write_bytes(part)
        with pytest.raises(ValueError, match="not finished; give --resume"):
            evaluate(run, folder, **options)
        assert evaluate(run, folder, resume=True, **options) == 0
        again = [json.loads(line) for line in out.read_text().splitlines()]
        assert [line["id"] for line in again] == [f"r{i}" for i in range(30)]
        assert [line["P"] for line in again] == pytest.approx([json.loads(line)["P"] for line in lines], abs=1e-5)


@pytest.mark.parametrize("line, words", [
    ({"id": "other", "P": 0.5, "decision": None}, "scores of other rows"), ({"id": "r1", "P": 2.0, "decision": None}, "another adapter, task or threshold"),
    ({"id": "r1", "P": None, "decision": None}, "another adapter"), ({"id": "r1", "P": "same", "decision": True}, "another adapter")])
def test_scores_of_something_else_are_not_gone_on_with(run, folder, capsys, tmp_path, line, words):
    first = scored(run, folder, capsys)
    line = line | {"P": first[1]["P"]} if line["P"] == "same" else line
    part = tmp_path / "s.jsonl.part"
    part.write_text(json.dumps(first[0]) + "\n" + json.dumps(line) + "\n")
    before = part.read_bytes()
    with pytest.raises(ValueError, match=words):
        evaluate(run, folder, score=str(folder / "in.jsonl"), task=str(folder / "t.toml"), out=str(tmp_path / "s.jsonl"), resume=True)
    assert part.read_bytes() == before


# ---- in a shell ----------------------------------------------------------------------------------------------------------------


def shell(run, folder, words, **options):
    command = [sys.executable, "eval.py", "--adapter", run, "--task", folder / "t.toml", *words]
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}, **options)


def test_standard_input_is_read_and_standard_output_holds_nothing_else(run, folder):
    process = shell(run, folder, ["--score", "-", "--threshold", "0.5"], stdin=subprocess.PIPE)
    out, error = process.communicate((folder / "in.jsonl").read_bytes()[:-1] + b"\n\xff\n")
    assert process.returncode == 2 and b"standard input:31: expected UTF-8" in error and b"Traceback" not in error
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == 30 and all(line["decision"] == (line["P"] > 0.5) for line in lines)


def test_a_reader_that_went_away_ends_it_quietly(run, folder, tmp_path):
    (tmp_path / "many.jsonl").write_text("".join(json.dumps({"id": "x" * 500, "text": "y"}) + "\n" for _ in range(3000)))
    process = shell(run, folder, ["--score", tmp_path / "many.jsonl"])
    assert process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait() == 128 + signal.SIGPIPE and b"Traceback" not in error and b"error:" not in error and b"Exception" not in error


# ---- thresholds ------------------------------------------------------------------------------------------------------------------


def made(n=2000, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.8).astype(int)
    p = 1 / (1 + np.exp(-np.where(labels == 0, rng.normal(2, 1, n), rng.normal(-1, 1, n))))
    return np.stack([p, 1 - p], axis=1), labels, np.array([f"row {i}" for i in range(n)])


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.29])
def test_the_threshold_is_the_lowest_that_so_many_negatives_exceed(fpr):
    P, labels, names = made()
    found, p, negatives = calibrate(P, labels, names, fpr=fpr), positive(P), None
    negatives = p[labels == 1]
    assert (negatives > found["threshold"]).mean() <= fpr < (negatives >= found["threshold"]).mean()
    assert found["tpr"] == pytest.approx(tpr_at_fpr(p, labels == 0, fpr)) and found["fpr"] == (negatives > found["threshold"]).mean()
    assert found["threshold_ci95"][0] <= found["threshold"] <= found["threshold_ci95"][1]
    assert found["tpr_ci95"][0] <= found["tpr"] <= found["tpr_ci95"][1] and found["fpr_ci95"][0] <= found["fpr"] <= found["fpr_ci95"][1]
    assert found == calibrate(P, labels, names, fpr=fpr)


def test_the_threshold_holds_on_new_rows_about_as_its_interval_says():
    asked = [calibrate(*made(800, seed), fpr=0.05)["threshold"] for seed in range(3)]
    low, high = calibrate(*made(800, 9), fpr=0.05)["threshold_ci95"]
    assert sum(low <= threshold <= high for threshold in asked) >= 2
    P, labels, _ = made(20_000, 7)
    assert all(0.02 < (positive(P)[labels == 1] > threshold).mean() < 0.1 for threshold in asked)


def test_rows_of_one_text_are_drawn_together():
    P, labels, names = made(400)
    wide = calibrate(np.repeat(P, 5, axis=0), np.repeat(labels, 5), np.repeat(names, 5), fpr=0.05)["threshold_ci95"]
    narrow = calibrate(np.repeat(P, 5, axis=0), np.repeat(labels, 5), np.arange(2000).astype(str), fpr=0.05)["threshold_ci95"]
    assert wide[1] - wide[0] > 1.5 * (narrow[1] - narrow[0])


@pytest.mark.parametrize("count, fpr, words", [(50, 0.01, "at least 100 negatives"), (200, 0.0, "--fpr"), (200, 1.5, "--fpr")])
def test_too_few_negatives_for_a_rate_are_refused(count, fpr, words):
    with pytest.raises(ValueError, match=words):
        calibrate(*(part[:count] for part in made()), fpr=fpr)


def test_the_temperature_undoes_one_that_was_put_on():
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, (6000, 3))
    true = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    labels = np.array([rng.choice(3, p=row) for row in true])
    sharp = tempered(true, 1 / 3)                                                         # three times as sure as it should be
    found = calibrate(sharp, labels, np.arange(6000).astype(str), fpr=0.05, fit=True)
    assert found["temperature"] == pytest.approx(3, rel=0.06) and found["ece"] < 0.03 < found["ece_at_temperature_1"]
    assert found["ece_at_temperature_1"] == pytest.approx(ece(positive(sharp), labels == 0))
    assert np.allclose(tempered(sharp, 3.0), true) and calibrate(sharp, labels, labels.astype(str), fpr=0.05)["temperature"] == 1.0


def test_wilsons_interval_is_the_known_one():
    assert wilson(1, 100) == pytest.approx([0.00177, 0.0545], abs=1e-4) and wilson(0, 50)[0] == 0 and wilson(50, 50)[1] == 1


def test_a_threshold_is_stored_beside_the_adapter_and_used(run, folder, capsys):
    assert evaluate(run, folder, calibrate=str(folder / "t.toml"), fpr=0.05) == 0
    told, stored = capsys.readouterr().out, json.loads((run / "calibration.json").read_text())["t"]
    assert f"{stored['threshold']:.6g}" in told and "stored in" in told and stored["rows"] == "test" and stored["negatives"] == 120
    lines = scored(run, folder, capsys, "rows.jsonl")
    assert [line["decision"] for line in lines] == [line["P"] > stored["threshold"] for line in lines]
    flagged = [line["decision"] for line in lines[::2]]                                    # the negatives
    assert sum(flagged) / 120 == pytest.approx(stored["fpr"], abs=0.01)
    assert all(line["decision"] for line in scored(run, folder, capsys, threshold=0.0))    # one's own wins
    assert evaluate(run, folder, calibrate=str(folder / "t.toml"), fpr=0.05, temperature=True) == 0
    assert json.loads((run / "calibration.json").read_text())["t"]["temperature"] != 1.0


def test_a_threshold_of_another_prompt_or_adapter_is_refused(run, folder, capsys):
    assert evaluate(run, folder, calibrate=str(folder / "t.toml"), fpr=0.05) == 0
    (folder / "new.toml").write_text((folder / "t.toml").read_text().replace("a leak", "theft"))
    with pytest.raises(ValueError, match="calibration.json: expected a threshold of this prompt"):
        evaluate(run, folder, score=str(folder / "in.jsonl"), task=str(folder / "new.toml"))
    stored = json.loads((run / "calibration.json").read_text())
    (run / "calibration.json").write_text(json.dumps({"t": stored["t"] | {"adapter": "sha256:0"}}))
    with pytest.raises(ValueError, match="expected a threshold of this adapter"):
        evaluate(run, folder, score=str(folder / "in.jsonl"), task=str(folder / "t.toml"))
    assert calibration.find_calibration(run, load_task(folder / "t.toml"), "sha256:0")["threshold"] == stored["t"]["threshold"]


@pytest.mark.parametrize("options, words", [
    (dict(calibrate="t.toml", score="in.jsonl", task="t.toml"), "one of them"), (dict(threshold=2.0, score="in.jsonl", task="t.toml"), "--threshold"),
    (dict(calibrate="t.toml", fpr=0.001), "test rows: .*at least 1000 negatives"), (dict(score="none.jsonl", task="t.toml"), "none.jsonl")])
def test_mistakes_are_refused(run, folder, options, words):
    options = {key: str(folder / value) if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises((ValueError, OSError), match=words):
        evaluate(run, folder, **options)


# ---- the report's curves ---------------------------------------------------------------------------------------------------------


def some_scores(n=400):
    parts = {}
    for i, (split, group) in enumerate([("trained", ""), ("new_domain", "adjacent"), ("new_domain", "far")]):
        sides = [made(n, 2 * i + j) for j in (0, 1)]
        labels = sides[1][1]
        base = np.roll(sides[0][0], 1, axis=0)
        parts.setdefault(split, {})[group] = [Scores(f"task-{i}", "d", labels, sides[1][2], base, sides[1][0])]
    return parts


def test_the_roc_goes_through_the_points_of_the_metrics():
    scores, positives = np.array([0.9, 0.8, 0.8, 0.3, 0.1]), np.array([True, False, True, False, True])
    fpr, tpr = roc(scores, positives)
    assert fpr.tolist() == [0, 0, 0.5, 1, 1] and tpr.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 2 / 3, 1])
    P, labels, _ = made()
    fpr, tpr = roc(P[:, 0], labels == 0)
    assert tpr[fpr <= 0.01].max() == pytest.approx(tpr_at_fpr(P[:, 0], labels == 0, 0.01))


def test_reliability_adds_up_to_the_ece():
    P, labels, _ = made()
    counts, mean, share = reliability(P[:, 0], labels == 0)
    assert counts.sum() == 2000 and np.abs(counts * (mean - share)).sum() / 2000 == pytest.approx(ece(P[:, 0], labels == 0, bins=10))


def test_the_report_reads_in_a_terminal_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    scores = some_scores()
    report = build_report(scores, model="m", adapter="a", seed=0, epsilon=0.75, run={})
    write_report(report, tmp_path, scores)
    text = (tmp_path / "report.md").read_text()
    assert not (tmp_path / "report.png").exists() and {"report.md", "report.json", "scores.jsonl"} == {path.name for path in tmp_path.iterdir()}
    for heading in ("## Uplift in AUROC, task by task", "## ROC", "## Reliability", "| new_domain / far"):
        assert heading in text
    assert "at 1.0%" in text and [row[:2] for row in roc_rows(scores)][-1] == ["new_domain / far", "adapter"]
    drawn = [line for line in uplift_text(report).splitlines() if line.startswith("task-")]
    assert len(drawn) == 3 and all("o" in line and "-" in line and line.endswith(f"{report['splits'][s]['tasks'][j]['uplift']['auroc']:+.3f}")
                                   for line, (s, j) in zip(drawn, [("trained", 0), ("new_domain", 0), ("new_domain", 1)]))


def test_the_figure_is_drawn_where_matplotlib_is_there(tmp_path):
    pytest.importorskip("matplotlib", reason="the plot extra is optional")
    scores = some_scores()
    report = build_report(scores, model="m", adapter="a", seed=0, epsilon=0.75, run={})
    assert write_figure(report, tmp_path / "r.png", scores) and (tmp_path / "r.png").read_bytes()[1:4] == b"PNG"
    assert write_figure(report, tmp_path / "s.png")


# ---- elsewhere ---------------------------------------------------------------------------------------------------------------------


def test_an_adapter_is_what_vllm_accepts(run):
    """What its source asks of adapter_config.json and of the names of tensors; it has not been run."""
    from safetensors.torch import load_file
    config = json.loads((run / "adapter_config.json").read_text())
    assert isinstance(config["r"], int) and config["r"] in (1, 8, 16, 32, 64, 128, 256, 320, 512) and config["lora_alpha"] and config["target_modules"]
    assert not config.get("modules_to_save") and not config.get("use_dora") and config.get("bias", "none") == "none"
    assert not config.get("rank_pattern") and not config.get("alpha_pattern")              # it would pass over them in silence
    names = list(load_file(run / "adapter_model.safetensors"))
    assert names and all(name.startswith("base_model.model.model.layers.") and name.endswith(("lora_A.weight", "lora_B.weight")) for name in names)
    modules = {name.split(".")[-3] for name in names}
    assert modules <= {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_two_log_probabilities_give_the_same_P(run, folder):
    """The README's way from a server's answer to P."""
    model, tokenizer = load_model(ROOT / "data/base"), load_tokenizer(ROOT / "data/base", date="2026-01-31")
    load_adapter(model, run)
    task = load_task(folder / "t.toml")
    from minimon.batch import encode_row
    yes, no = tokenizer.label_ids(list(task.labels))
    with torch.no_grad():
        logs = model.logits(model(torch.tensor([encode_row(tokenizer, task, "Sings")])))[0, -1].log_softmax(-1)
    assert 1 / (1 + math.exp(logs[no] - logs[yes])) == pytest.approx(score(model, tokenizer, task, ["Sings"])[0, 0].item(), abs=1e-5)
