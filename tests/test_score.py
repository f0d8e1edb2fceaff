"""Scores and thresholds: what one pipes into other tools, and acts on."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import eval as evaluation
from minimon.checkpoint import load_model
from minimon.evaluate import score
from minimon.lora import adapter_tensors, add_lora, load_adapter, save_adapter
from minimon.metrics import ece, sigmoid
from minimon.serve import inputs, stream, thresholds
from minimon.serve.monitor import Scored
from minimon.serve.thresholds import calibrate, tempered, wilson
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
    for parameter in adapter_tensors(model).values():
        torch.nn.init.normal_(parameter, std=0.05)
    (here / "run").mkdir()
    save_adapter(model, here / "run", base=str(ROOT / "data/base"))
    (here / "run/settings.json").write_text(
        json.dumps({"model": str(ROOT / "data/base"), "date": "2026-01-31", "seed": 0})
    )
    rows = [{"text": f"{WORDS[i % 5]} {i}", "y": i % 2, "split": "test"} for i in range(240)]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (here / "t.toml").write_text(
        'name = "t"\ndomain = "home"\nprompt = "Is it a leak? Answer Yes or No."\nrows = "rows.jsonl"\ntext = "text"\n'
        'label = "y"\nlabels = { Yes = [1], No = [0] }\nsplit = "split"\n'
    )
    (here / "trained.toml").write_text((here / "t.toml").read_text().replace("rows.jsonl", "trained.jsonl"))
    (here / "trained.jsonl").write_text(
        "".join(
            json.dumps({"text": f"x {i}", "y": i % 2, "split": "train" if i < 20 else "test"}) + "\n"
            for i in range(40)
        )
    )
    (here / "m.toml").write_text(
        '[train]\ntasks = ["trained.toml"]\n[eval.trained]\ntasks = ["trained.toml"]\n'
    )
    (here / "in.jsonl").write_text(
        "".join(json.dumps({"id": f"r{i}", "text": f"{WORDS[i % 5]} {i}"}) + "\n" for i in range(30))
    )
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
    assert (
        evaluate(run, folder, **{"score": str(folder / file), "task": str(folder / "t.toml")} | changes) == 0
    )
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def chunks_of(monkeypatch, rows):
    monkeypatch.setattr(stream, "CHUNK_ROWS", rows)


# ---- a stream of rows ----------------------------------------------------------------------------------------------------------


def test_each_row_has_a_line_with_its_id_in_order_whatever_the_chunks(run, folder, capsys, monkeypatch):
    whole = scored(run, folder, capsys)
    assert [line["id"] for line in whole] == [f"r{i}" for i in range(30)] and all(
        set(line) == {"id", "log_odds", "P", "decision"} for line in whole
    )
    model, tokenizer = load_model(ROOT / "data/base"), load_tokenizer(ROOT / "data/base", date="2026-01-31")
    load_adapter(model, run)
    plain = score(model, tokenizer, load_task(folder / "t.toml"), [f"{WORDS[i % 5]} {i}" for i in range(30)])
    assert [line["P"] for line in whole] == pytest.approx(plain[:, 0].tolist(), abs=1e-6)
    chunks_of(monkeypatch, 7)
    assert [line["P"] for line in scored(run, folder, capsys)] == pytest.approx(
        [line["P"] for line in whole], abs=1e-5
    )


def test_text_is_the_tasks_field_or_text_or_a_chat_and_ids_may_be_anything(run, folder, capsys, tmp_path):
    (folder / "own.toml").write_text((folder / "t.toml").read_text().replace('text = "text"', 'text = "a.b"'))
    rows = [
        {"id": None, "a": {"b": "x"}, "text": "no"},
        {"id": [1, "é"], "text": "x"},
        {"messages": [{"role": "user", "content": "x"}]},
    ]
    (folder / "mixed.jsonl").write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows[:2]) + "\n\n" + json.dumps(rows[2]),
        encoding="utf-8-sig",
    )
    task = load_task(folder / "own.toml")
    assert [item.text for item in inputs.read_items([str(folder / "mixed.jsonl")], task)] == [
        "x",
        "x",
        "[user]\nx",
    ]
    assert [
        line["id"] for line in scored(run, folder, capsys, "mixed.jsonl", task=str(folder / "own.toml"))
    ] == [None, [1, "é"], 4]


def test_an_inspect_log_is_scored_and_what_is_skipped_says_why(run, folder, capsys):
    lines = scored(run, folder, capsys, score=str(LOGS / "deflate.eval"))
    assert len(lines) == 8 and {line["skipped"] for line in lines if "broken" in line["id"]} == {"error"}
    assert all((line["P"] is None) == ("broken" in line["id"]) for line in lines)


def test_a_line_at_the_end_counts_what_was_flagged_and_what_not_scored(run, folder, capsys, monkeypatch):
    rows = [{"text": "Sings"}, {"text": ""}, {"text": " \n "}, {"text": "Feeds the cat"}]
    (folder / "blank.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for file, changes, words in (
        ("blank.jsonl", {"threshold": 0.0}, "4 rows: 2 flagged, 0 not, 2 not scored (empty text)"),
        ("blank.jsonl", {}, "4 rows: 2 scored, 2 not scored (empty text)"),
        (LOGS / "deflate.eval", {"threshold": 1.0}, "8 rows: 0 flagged, 6 not, 2 not scored (error)"),
        ("in.jsonl", {"threshold": 1.0}, "30 rows: 0 flagged, 30 not"),
    ):
        options = {"score": str(folder / file), "task": str(folder / "t.toml")} | changes
        assert evaluate(run, folder, **options) == 0
        out, error = capsys.readouterr()
        assert words in error.splitlines()
        lines = [json.loads(line) for line in out.splitlines()]
        assert all((line["log_odds"] is None) == ("skipped" in line) for line in lines)
        if file == "blank.jsonl":
            assert [line.get("skipped") for line in lines] == [None, "empty text", "empty text", None]
    chunks_of(monkeypatch, 8)
    out = run / "s.jsonl"
    part_of_scores(run, folder, capsys, out)
    options = {"score": str(folder / "in.jsonl"), "task": str(folder / "t.toml"), "out": str(out)}
    capsys.readouterr()
    assert evaluate(run, folder, **options, resume=True) == 0  # those of the first part count as well
    assert "30 rows: 30 scored" in capsys.readouterr().err.splitlines()


def test_a_table_with_semicolons_is_refused_at_its_header(run, folder):
    (folder / "semi.csv").write_text("message;verdict\nSings;ok\n")
    with pytest.raises(ValueError, match="semi.csv:2: expected a field 'text', got message;verdict"):
        evaluate(run, folder, score=str(folder / "semi.csv"), task=str(folder / "t.toml"))


@pytest.mark.parametrize(
    "bad, words",
    [
        (b"{", "bad.jsonl:21: expected one JSON object"),
        (b'{"text": "\xff"}', "bad.jsonl:21: expected UTF-8 text, got byte 0xff"),
        (b'{"other": 1}', "bad.jsonl:21: expected a field 'text'"),
        (b'{"text": 3}', "bad.jsonl:21.*: expected text.*, got int"),
    ],
)
def test_every_row_before_a_bad_line_is_scored(run, folder, capsys, bad, words):
    lines = (folder / "in.jsonl").read_bytes().splitlines()
    (folder / "bad.jsonl").write_bytes(b"\n".join([*lines[:20], bad, *lines[20:]]))
    with pytest.raises(ValueError, match=words):
        evaluate(run, folder, score=str(folder / "bad.jsonl"), task=str(folder / "t.toml"))
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == [
        f"r{i}" for i in range(20)
    ]


class Undecided:
    """A monitor that finds both labels as likely, without a model."""

    model, task, held = torch.nn.Linear(1, 1), SimpleNamespace(labels={"Yes": [1], "No": [0]}), 0

    def score_texts(self, texts):
        self.held -= len(texts)
        n = len(texts)
        return Scored(np.zeros(n), np.full(n, 0.5), None, np.zeros((n, 2)), np.zeros(n, dtype=int))


def test_memory_does_not_grow_with_the_rows():
    """What is held are a chunk's items: counted, with scoring itself left out."""
    monitor, most = Undecided(), [0]

    def rows():
        for i in range(5000):
            monitor.held += 1
            most[0] = max(most[0], monitor.held)
            yield inputs.Item(i, "x" * 100, {}, {})

    chunks = stream.chunks_of([rows()], [])
    assert sum(map(len, stream.score_chunks(monitor, chunks))) == 5000 and most[0] <= stream.CHUNK_ROWS
    long = stream.chunks_of([[inputs.Item(i, "x" * 600_000, {}, {}) for i in range(5)]], [])
    assert [len(lines) for lines in stream.score_chunks(monitor, long)] == [2, 2, 1]


def test_the_first_scores_of_a_file_do_not_wait_for_a_whole_chunk():
    items = [inputs.Item(i, "x", {}, {}) for i in range(1000)]
    sizes = [len(chunk) for chunk in stream.chunks_of([items], [])]
    assert sizes[:6] == [8, 16, 32, 64, 128, 256] and sum(sizes) == 1000


# ---- going on ------------------------------------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_goes_on_to_the_same_file(run, folder, capsys, monkeypatch, tmp_path):
    chunks_of(monkeypatch, 8)
    out = tmp_path / "scores.jsonl"
    options = dict(score=str(folder / "in.jsonl"), task=str(folder / "t.toml"), out=str(out))
    assert evaluate(run, folder, **options) == 0
    whole = out.read_bytes()
    assert (
        not capsys.readouterr().out
        and len(whole.splitlines()) == 30
        and not (tmp_path / "scores.jsonl.part").exists()
    )
    with pytest.raises(ValueError, match="is already there; .*--overwrite"):
        evaluate(run, folder, **options)
    assert evaluate(run, folder, resume=True, **options) == 0 and out.read_bytes() == whole  # finished
    lines = whole.splitlines(keepends=True)
    for part in (b"".join(lines[:16]) + lines[16][:9], b"".join(lines[:8]), lines[0][:5], b"", whole):
        out.unlink()
        os.replace(tmp_path / "scores.jsonl.about.json", tmp_path / "scores.jsonl.part.about.json")
        (tmp_path / "scores.jsonl.part").write_bytes(part)
        with pytest.raises(
            ValueError, match="not finished; give --resume to go on, --overwrite to start again"
        ):
            evaluate(run, folder, **options)
        assert evaluate(run, folder, resume=True, **options) == 0
        again = [json.loads(line) for line in out.read_text().splitlines()]
        assert [line["id"] for line in again] == [f"r{i}" for i in range(30)]
        assert [line["P"] for line in again] == pytest.approx(
            [json.loads(line)["P"] for line in lines], abs=1e-5
        )


def test_what_replaces_a_finished_file_goes_on_and_is_taken_for_finished_only_when_it_is(tmp_path):
    out, part = tmp_path / "s.jsonl", tmp_path / "s.jsonl.part"
    out.write_text('{"id": 1, "decision": null}\n')
    (tmp_path / "s.jsonl.about.json").write_text('{"threshold": "old"}')
    about = {"threshold": "new"}
    assert stream.prepare(out, about, resume=False, overwrite=True) == {}
    part.write_text('{"id": 1, "decision": true}\n')
    assert stream.prepare(out, about, resume=True, overwrite=False) == {True: 1}
    os.replace(stream.about_of(part), stream.about_of(out))  # killed between the two renames of `finish`
    assert stream.prepare(out, about, resume=True, overwrite=False) == {True: 1}
    stream.finish(out)
    assert "true" in out.read_text() and not part.exists()
    assert stream.prepare(out, about, resume=True, overwrite=False) is None


def part_of_scores(run, folder, capsys, out, **changes):
    """An unfinished file of scores: 8 rows of 30, as a run that was stopped leaves it."""
    assert (
        evaluate(
            run, folder, score=str(folder / "in.jsonl"), task=str(folder / "t.toml"), out=str(out), **changes
        )
        == 0
    )
    out.with_name(out.name + ".part").write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:8]))
    out.unlink()
    os.replace(f"{out}.about.json", f"{out}.part.about.json")


def test_scores_in_bf16_are_gone_on_with(run, folder, capsys, tmp_path):
    out = tmp_path / "s.jsonl"
    part_of_scores(run, folder, capsys, out, dtype="bfloat16")
    assert (
        evaluate(
            run,
            folder,
            score=str(folder / "in.jsonl"),
            task=str(folder / "t.toml"),
            out=str(out),
            dtype="bfloat16",
            resume=True,
        )
        == 0
    )
    assert len(out.read_text().splitlines()) == 30


def test_scores_of_something_else_are_not_gone_on_with(run, folder, capsys, tmp_path):
    """Another threshold, dtype, limit, task, input or adapter; what is there stays as it is."""
    out, part = tmp_path / "s.jsonl", tmp_path / "s.jsonl.part"
    part_of_scores(run, folder, capsys, out)
    options = dict(score=str(tmp_path / "in.jsonl"), task=str(tmp_path / "t.toml"), out=str(out), resume=True)
    for name in ("in.jsonl", "t.toml", "rows.jsonl"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    about = tmp_path / "s.jsonl.part.about.json"
    about.write_text(about.read_text().replace(str(folder / "in.jsonl"), str(tmp_path / "in.jsonl")))
    before = part.read_bytes()

    def refused(words, **changes):
        with pytest.raises(ValueError, match=f"scores of another .*{words}"):
            evaluate(run, folder, **options | changes)
        assert part.read_bytes() == before

    refused("threshold", threshold=0.5)
    refused("dtype", dtype="bfloat16")
    refused("max_tokens", max_tokens=100)
    refused("with_text", with_text=True)
    (tmp_path / "in.jsonl").write_text((folder / "in.jsonl").read_text() + json.dumps({"text": "x"}))
    refused("input")
    (tmp_path / "in.jsonl").write_bytes((folder / "in.jsonl").read_bytes())
    (tmp_path / "t.toml").write_text((folder / "t.toml").read_text().replace("a leak", "theft"))
    refused("task")
    (tmp_path / "t.toml").write_bytes((folder / "t.toml").read_bytes())
    assert evaluate(run, folder, **options, batch_tokens=512) == 0 and out.read_bytes().startswith(before)
    about = json.loads((tmp_path / "s.jsonl.about.json").read_text())
    assert about["adapter"].startswith("sha256:") and about["input"][str(tmp_path / "in.jsonl")].startswith(
        "sha256:"
    )


def test_scores_are_replaced_only_when_asked_and_a_directory_never(run, folder, capsys, tmp_path):
    out = tmp_path / "s.jsonl"
    options = dict(score=str(folder / "in.jsonl"), task=str(folder / "t.toml"), out=str(out))
    assert evaluate(run, folder, **options) == 0
    with pytest.raises(ValueError, match="s.jsonl is already there; .*--overwrite"):
        evaluate(run, folder, **options)
    assert evaluate(run, folder, **options, overwrite=True, threshold=0.5) == 0
    assert json.loads(out.read_text().splitlines()[0])["decision"] is not None
    with pytest.raises(ValueError, match="expected the name of a file for the scores, got a directory"):
        evaluate(run, folder, **options | {"out": str(run)}, overwrite=True)


# ---- in a shell ----------------------------------------------------------------------------------------------------------------


def shell(run, folder, words, **options):
    command = [sys.executable, "eval.py", "--adapter", run, "--task", folder / "t.toml", *words]
    return subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


def test_standard_input_is_read_and_standard_output_holds_nothing_else(run, folder):
    process = shell(run, folder, ["--score", "-", "--threshold", "0.5"], stdin=subprocess.PIPE)
    out, error = process.communicate((folder / "in.jsonl").read_bytes()[:-1] + b"\n\xff\n")
    assert (
        process.returncode == 2
        and b"standard input:31: expected UTF-8" in error
        and b"Traceback" not in error
    )
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == 30 and all(line["decision"] == (line["log_odds"] > 0) for line in lines)


def test_a_row_of_a_slow_pipe_is_scored_as_it_comes(run, folder):
    process = shell(run, folder, ["--score", "-"], stdin=subprocess.PIPE, text=True)
    for i in range(3):
        process.stdin.write(json.dumps({"id": i, "text": "Sings"}) + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["id"] == i  # while the pipe is open
    process.stdin.close()
    assert process.wait() == 0 and not process.stdout.read()


def test_a_reader_that_went_away_ends_it_quietly(run, folder, tmp_path):
    (tmp_path / "many.jsonl").write_text(
        "".join(json.dumps({"id": "x" * 500, "text": "y"}) + "\n" for _ in range(3000))
    )
    process = shell(run, folder, ["--score", tmp_path / "many.jsonl"])
    assert process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    assert (
        process.wait() == 128 + signal.SIGPIPE
        and b"Traceback" not in error
        and b"error:" not in error
        and b"Exception" not in error
    )


# ---- thresholds ------------------------------------------------------------------------------------------------------------------


def logits(n=2000, seed=0):
    """(n, 2) log-odds, labels, names: a positive's log-odds are higher by three."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.8).astype(int)
    z = np.where(labels == 0, rng.normal(2, 1, n), rng.normal(-1, 1, n))
    return np.stack([z, -z], axis=1), labels, np.array([f"row {i}" for i in range(n)])


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.29])
def test_the_threshold_is_the_lowest_that_so_many_negatives_exceed(fpr):
    log_odds, labels, names = logits()
    found, scores = calibrate(log_odds, labels, names, fpr=fpr), log_odds[:, 0].round(6)
    negatives = scores[labels == 1]
    k = math.floor(fpr * (len(negatives) + 1))
    assert (negatives > found["threshold"]).sum() == k - 1 and (negatives >= found["threshold"]).sum() == k
    assert found["tpr"] == (scores[labels == 0] > found["threshold"]).mean() and found["fpr"] == (
        k - 1
    ) / len(negatives)
    assert found["threshold_ci95"][0] <= found["threshold"] <= found["threshold_ci95"][1]
    assert (
        found["tpr_ci95"][0] <= found["tpr"] <= found["tpr_ci95"][1]
        and found["fpr_ci95"][0] <= found["fpr"] <= found["fpr_ci95"][1]
    )
    assert found == calibrate(log_odds, labels, names, fpr=fpr) and not found["separated"]


@pytest.mark.parametrize("negatives, fpr", [(99, 0.01), (100, 0.01), (19, 0.05), (25, 0.05), (150, 0.02)])
def test_the_false_positive_rate_on_new_rows_is_the_one_asked_for_even_with_the_fewest_negatives(
    negatives, fpr
):
    """Of thresholds on so many negatives: the share of new negatives above, on average over calibrations."""
    rng, rates = np.random.default_rng(0), []
    for _ in range(4000):
        drawn = rng.normal(0, 1, negatives)
        scores, positives = np.append(drawn, -9.0), np.append(np.zeros(negatives, dtype=bool), True)
        threshold = thresholds.pick(scores, positives, fpr)
        rates.append(0.5 * math.erfc(threshold / math.sqrt(2)))
    assert np.mean(rates) <= fpr * 1.05  # twice as much before; 5% for the draws


def test_a_threshold_of_labels_that_separate_lies_between_them():
    log_odds, labels, names = logits(400)
    log_odds = np.where(labels[:, None] == 0, np.abs(log_odds) + 20, -np.abs(log_odds) - 10) * [1, -1]
    found, scores = calibrate(log_odds, labels, names, fpr=0.05, fit=True), tempered(log_odds, 1.0)[:, 0]
    tempered_scores = tempered(log_odds, found["temperature"])[:, 0]
    assert found["separated"] and found["tpr"] == 1 and found["fpr"] == 0
    assert found["threshold"] == pytest.approx(
        (tempered_scores[labels == 0].min() + tempered_scores[labels == 1].max()) / 2
    )
    plain = calibrate(log_odds, labels, names, fpr=0.05)
    assert (
        plain["threshold"] == pytest.approx((scores[labels == 0].min() + scores[labels == 1].max()) / 2)
        and plain["threshold"] > 0
    )
    assert "separate completely" in thresholds.calibration_lines(
        load_like("t"), plain | {"rows": "test", "checked": True}
    )


def load_like(name):
    return SimpleNamespace(name=name, labels={"Yes": [1], "No": [0]})


def test_scores_beyond_what_P_can_tell_apart_have_a_threshold():
    """P of log-odds beyond 37 is 1 in fp64, beyond 17 in fp32."""
    log_odds, labels, names = logits()
    shifted = calibrate(log_odds + np.array([100, -100]), labels, names, fpr=0.05)
    assert shifted["threshold"] == pytest.approx(
        calibrate(log_odds, labels, names, fpr=0.05)["threshold"] + 100
    )


def test_the_threshold_holds_on_new_rows_about_as_its_interval_says():
    asked = [calibrate(*logits(800, seed), fpr=0.05)["threshold"] for seed in range(3)]
    low, high = calibrate(*logits(800, 9), fpr=0.05)["threshold_ci95"]
    assert sum(low <= threshold <= high for threshold in asked) >= 2
    log_odds, labels, _ = logits(20_000, 7)
    assert all(0.02 < (log_odds[labels == 1, 0] > threshold).mean() < 0.1 for threshold in asked)


def test_rows_of_one_text_are_drawn_together():
    log_odds, labels, names = logits(400)
    rows = np.repeat(log_odds, 5, axis=0), np.repeat(labels, 5)
    wide = calibrate(*rows, np.repeat(names, 5), fpr=0.05)["threshold_ci95"]
    narrow = calibrate(*rows, np.arange(2000).astype(str), fpr=0.05)["threshold_ci95"]
    assert wide[1] - wide[0] > 1.5 * (narrow[1] - narrow[0])


def test_too_few_negatives_for_a_rate_are_refused():
    with pytest.raises(ValueError, match="at least 99 negatives"):
        calibrate(*(part[:50] for part in logits()), fpr=0.01)


def log_odds_of(P):
    return np.log(P) - np.log1p(-P)


def test_the_temperature_undoes_one_that_was_put_on():
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, (6000, 3))
    true = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    labels = np.array([rng.choice(3, p=row) for row in true])
    sharp = tempered(log_odds_of(true), 1 / 3)  # three times as sure as it should be
    found = calibrate(sharp, labels, np.arange(6000).astype(str), fpr=0.05, fit=True)
    assert (
        found["temperature"] == pytest.approx(3, rel=0.06)
        and found["ece"] < 0.03 < found["ece_at_temperature_1"]
    )
    assert found["ece_at_temperature_1"] == pytest.approx(ece(sigmoid(sharp[:, 0]), labels == 0))
    assert np.allclose(tempered(sharp, 3.0), log_odds_of(true), atol=1e-9)
    assert calibrate(sharp, labels, labels.astype(str), fpr=0.05)["temperature"] == 1.0


def test_at_a_temperature_log_odds_of_two_labels_are_divided_by_it():
    z = np.array([-800.0, -40.0, -1.0, 0.0, 3.0, 40.0, 800.0])
    assert np.allclose(tempered(np.stack([z, -z], axis=1), 2.5), np.stack([z, -z], axis=1) / 2.5, atol=1e-9)


def test_wilsons_interval_is_the_known_one():
    assert (
        wilson(1, 100) == pytest.approx([0.00177, 0.0545], abs=1e-4)
        and wilson(0, 50)[0] == 0
        and wilson(50, 50)[1] == 1
    )


def test_a_threshold_is_stored_beside_the_adapter_and_used(run, folder, capsys):
    assert evaluate(run, folder, calibrate=str(folder / "t.toml"), fpr=0.05) == 0
    printed, stored = capsys.readouterr().out, json.loads((run / "calibration.json").read_text())["t"]
    assert (
        f"{stored['threshold']:.6g}" in printed
        and "stored in" in printed
        and stored["rows"] == "test"
        and stored["negatives"] == 120
    )
    assert "training rows cannot be read" in printed  # settings.json names no mixture
    assert f"(P {sigmoid(np.float64(stored['threshold'])):.4g})" in printed
    assert "which the report has measured as well; give the task a validation share" in printed
    where = "for an FPR of 0.05, picked on 240 rows of rows.jsonl; the rate holds for texts like those"
    monitor = SimpleNamespace(threshold=stored["threshold"], calibration=stored)
    assert where in thresholds.threshold_line(monitor)
    lines = scored(run, folder, capsys, "rows.jsonl")
    assert [line["decision"] for line in lines] == [line["log_odds"] > stored["threshold"] for line in lines]
    flagged = [line["decision"] for line in lines[::2]]  # the negatives
    assert sum(flagged) / 120 == pytest.approx(stored["fpr"], abs=0.01)
    assert all(line["decision"] for line in scored(run, folder, capsys, threshold=0.0))  # one's own wins
    assert not any(line["decision"] for line in scored(run, folder, capsys, threshold=1.0))
    with pytest.raises(
        ValueError, match="calibration.json: holds a threshold for task 't'; give --overwrite"
    ):
        evaluate(run, folder, calibrate=str(folder / "t.toml"), fpr=0.05, temperature=True)
    assert (
        evaluate(run, folder, calibrate=str(folder / "t.toml"), fpr=0.05, temperature=True, overwrite=True)
        == 0
    )
    stored = json.loads((run / "calibration.json").read_text())["t"]
    assert (
        evaluate(
            run,
            folder,
            score=str(folder / "rows.jsonl"),
            task=str(folder / "t.toml"),
            out=str(run / "s.jsonl"),
        )
        == 0
    )
    again = [json.loads(line) for line in (run / "s.jsonl").read_text().splitlines()]
    assert stored["temperature"] != 1.0
    assert [line["log_odds"] for line in again] == pytest.approx(
        [line["log_odds"] / stored["temperature"] for line in lines], abs=1e-4
    )
    assert json.loads((run / "s.jsonl.about.json").read_text())["calibration"] == stored


def test_a_threshold_of_another_prompt_or_adapter_is_refused(run, folder, capsys):
    assert evaluate(run, folder, calibrate=str(folder / "t.toml"), fpr=0.05) == 0
    (folder / "new.toml").write_text((folder / "t.toml").read_text().replace("a leak", "theft"))
    with pytest.raises(
        ValueError, match="calibration.json: expected a threshold for 't' with the same prompt"
    ):
        evaluate(run, folder, score=str(folder / "in.jsonl"), task=str(folder / "new.toml"))
    swapped = (
        (folder / "t.toml")
        .read_text()
        .replace("labels = { Yes = [1], No = [0] }", "labels = { No = [0], Yes = [1] }")
    )
    (folder / "swapped.toml").write_text(swapped)
    with pytest.raises(ValueError, match="with the same labels"):
        evaluate(run, folder, score=str(folder / "in.jsonl"), task=str(folder / "swapped.toml"))
    stored = json.loads((run / "calibration.json").read_text())
    (run / "calibration.json").write_text(json.dumps({"t": stored["t"] | {"adapter": "sha256:0"}}))
    with pytest.raises(ValueError, match="with the same adapter"):
        evaluate(run, folder, score=str(folder / "in.jsonl"), task=str(folder / "t.toml"))
    assert (
        thresholds.find_calibration(run, load_task(folder / "t.toml"), "sha256:0")["threshold"]
        == stored["t"]["threshold"]
    )
    old = {key: value for key, value in stored["t"].items() if key != "scale"}
    (run / "calibration.json").write_text(json.dumps({"t": old | {"threshold": 0.4}}))
    with pytest.raises(
        ValueError, match="expected a threshold for 't' with the same scale, got another's; pick it again"
    ):
        evaluate(run, folder, score=str(folder / "in.jsonl"), task=str(folder / "t.toml"))


def test_rows_that_were_trained_on_are_not_calibrated_on_whatever_file_they_come_from(
    run, folder, capsys, tmp_path
):
    rows = [
        {"text": f"{WORDS[i % 5]} {i}", "y": i % 2, "split": "train" if i < 60 else "test"} for i in range(90)
    ]
    (tmp_path / "trained.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "trained.toml").write_text(
        (folder / "t.toml").read_text().replace("rows.jsonl", "trained.jsonl")
    )
    (tmp_path / "m.toml").write_text(
        '[train]\ntasks = ["trained.toml"]\n[eval.trained]\ntasks = ["trained.toml"]\n'
    )
    settings = json.loads((run / "settings.json").read_text())
    (run / "settings.json").write_text(json.dumps(settings | {"mixture": str(tmp_path / "m.toml")}))
    with pytest.raises(
        ValueError,
        match=r"rows.jsonl:1: task 't': .* got 60 of 240 that it was, this one at .*trained.jsonl:1",
    ):
        evaluate(run, folder, calibrate=str(folder / "t.toml"), fpr=0.05)
    assert evaluate(run, folder, calibrate=str(tmp_path / "trained.toml"), fpr=0.1) == 0  # its test rows
    assert "cannot be read" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(calibrate="t.toml", score="in.jsonl", task="t.toml"), "one of them"),
        (dict(threshold=2.0, score="in.jsonl", task="t.toml"), "--threshold"),
        (dict(calibrate="t.toml", fpr=0.001), "test rows: .*at least 999 negatives"),
        (dict(score="none.jsonl", task="t.toml"), "none.jsonl"),
        (dict(calibrate="t.toml", fpr=5.0), "--fpr: expected a number in .0, 1., got 5"),
        (dict(score="-", task="t.toml", resume=True), "no --resume"),
        (
            dict(score="in.jsonl", task="t.toml", resume=True, overwrite=True),
            "expected one of them, got both",
        ),
    ],
)
def test_mistakes_are_refused(run, folder, options, words):
    options = {
        key: str(folder / value) if isinstance(value, str) and value != "-" else value
        for key, value in options.items()
    }
    with pytest.raises((ValueError, OSError), match=words):
        evaluate(run, folder, **options)


def test_what_can_be_refused_early_is_refused_before_the_model_is_read(run, folder, monkeypatch, tmp_path):
    monkeypatch.setattr("minimon.serve.monitor.load_base", None)
    for options, words in [
        (dict(calibrate="t.toml", fpr=5.0), "--fpr"),
        (dict(merge_to=str(tmp_path)), "--merge-to: .* is already there; .*--overwrite"),
        (dict(score="none.jsonl", task="t.toml"), "none.jsonl"),
        (dict(attack=True, mixture="m.toml"), "new_domain"),
        (dict(splits="far", mixture="m.toml"), "--splits: expected some of trained.* got 'far'"),
    ]:
        options = {
            key: str(folder / value) if isinstance(value, str) and key != "splits" else value
            for key, value in options.items()
        }
        with pytest.raises((ValueError, OSError), match=words):
            evaluate(run, folder, **options)


# ---- elsewhere ---------------------------------------------------------------------------------------------------------------------


def test_an_adapter_is_what_vllm_accepts(run):
    """What its source asks of adapter_config.json and of the names of tensors; it has not been run."""
    from safetensors.torch import load_file

    config = json.loads((run / "adapter_config.json").read_text())
    assert (
        isinstance(config["r"], int)
        and config["r"] in (1, 8, 16, 32, 64, 128, 256, 320, 512)
        and config["lora_alpha"]
        and config["target_modules"]
    )
    assert (
        not config.get("modules_to_save")
        and not config.get("use_dora")
        and config.get("bias", "none") == "none"
    )
    # it would pass over them in silence
    assert not config.get("rank_pattern") and not config.get("alpha_pattern")
    names = list(load_file(run / "adapter_model.safetensors"))
    assert names and all(
        name.startswith("base_model.model.model.layers.")
        and name.endswith(("lora_A.weight", "lora_B.weight"))
        for name in names
    )
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
        logs = model.logits(model(torch.tensor([encode_row(tokenizer, task, "Sings").ids])))[
            0, -1
        ].log_softmax(-1)
    assert 1 / (1 + math.exp(logs[no] - logs[yes])) == pytest.approx(
        score(model, tokenizer, task, ["Sings"])[0, 0].item(), abs=1e-5
    )
