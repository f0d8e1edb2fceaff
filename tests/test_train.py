"""train.py and eval.py as a user meets them: whole runs on a small mixture, interruption, and mistakes."""

import json
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forks import ended
from safetensors.torch import load_file

import eval as evaluation
import minimon.run.measured
import minimon.steps
import train
from minimon.batch import encode_row, pack, training_order
from minimon.checkpoint import load_model
from minimon.lora import adapter_tensors, add_lora
from minimon.run.cli import one_line_errors
from minimon.steps import encode_groups, step_passes, training_step
from minimon.tasks import load_mixture
from minimon.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parent.parent
MIXTURE = """
name = "small"
[train]
tasks = ["{tasks}/shell.toml#shell-d*", "{tasks}/email.toml#email-conceal", "{tasks}/review.toml"]
cap = 16
[eval]
rows = 8
[eval.trained]
tasks = ["{tasks}/shell.toml#shell-deceive"]
[eval.new_domain]
adjacent = ["{tasks}/adjacent.toml#home-e*"]
far = ["{tasks}/far.toml#home-threaten"]
[eval.new_prompt]
other_question = ["{tasks}/other_question.toml#review-[a-e]*"]
"""


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    path = tmp_path_factory.mktemp("mixture") / "small.toml"
    path.write_text(MIXTURE.format(tasks=ROOT / "data/tasks"))
    return path


def settings(mixture, out, **changes):
    return replace(
        train.Settings(
            mixture=str(mixture), steps=4, batch_size=12, group_size=5, warmup=1, save_every=2, out=str(out)
        ),
        **changes,
    )


@pytest.fixture(scope="module")
def run(mixture, tmp_path_factory):
    """One finished run, left alone."""
    out = tmp_path_factory.mktemp("runs") / "one"
    assert train.main(settings(mixture, out)) == 0
    return out


def report(out):
    return {
        key: value for key, value in json.loads((out / "report.json").read_text()).items() if key != "run"
    }


def measured(out):
    """What eval.py can know of a run as well: not how it was trained."""
    return {key: value for key, value in report(out).items() if key != "training"}


# ---- a whole run -----------------------------------------------------------------------------------------------------------


def test_a_run_leaves_an_adapter_its_settings_a_log_and_a_report(run):
    there = {path.name for path in run.iterdir()}
    assert {
        "adapter_model.safetensors",
        "adapter_config.json",
        "settings.json",
        "log.jsonl",
        "report.json",
        "report.md",
    } <= there
    assert not {name for name in there if name.endswith(".tmp") or name.startswith("state")}
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3, 4] and all(
        line["loss"] > 0 and line["tokens"] > 0 for line in log
    )


def test_the_report_holds_every_number_it_promises(run):
    whole = report(run)
    assert {
        "model",
        "adapter",
        "seed",
        "epsilon",
        "splits",
        "inter_task",
        "intra_task",
        "leakage",
        "training",
    } == set(whole)
    assert list(whole["splits"]) == ["trained", "new_domain", "new_prompt"]
    assert set(whole["splits"]["new_domain"]["groups"]) == {"adjacent", "far"}
    for split in whole["splits"].values():
        for entry in [*split["tasks"], split["mean"], *split["groups"].values()]:
            for side in ("base", "adapter"):
                assert {"performance", "auroc", "tpr_at_1pct_fpr", "brier", "ece"} <= set(entry[side])
            assert {"performance", "auroc", "ci95"} <= set(entry["uplift"]) and entry["uplift"]["ci95"][
                0
            ] <= entry["uplift"]["ci95"][1]
        assert all(
            {"task", "domain", "n", "positives"} <= set(task) and task["n"] == 2 * task["positives"]
            for task in split["tasks"]
        )
    verdict = whole["inter_task"]
    assert {"pairs", "base_mean", "mean", "epsilon", "generalizes"} <= set(verdict)
    assert verdict["pairs"] == sum(task["n"] for task in whole["splits"]["new_domain"]["tasks"])
    assert verdict["mean"] == pytest.approx(whole["splits"]["new_domain"]["mean"]["adapter"]["performance"])
    assert verdict["generalizes"] == (verdict["mean"] > verdict["epsilon"])


def test_the_same_seed_gives_the_same_report_and_another_seed_another(run, mixture, tmp_path):
    assert train.main(settings(mixture, tmp_path / "again")) == 0
    assert report(tmp_path / "again") == report(run)
    assert (tmp_path / "again/adapter_model.safetensors").read_bytes() == (
        run / "adapter_model.safetensors"
    ).read_bytes()
    assert train.main(settings(mixture, tmp_path / "other", seed=1, steps=1)) == 0
    assert report(tmp_path / "other")["adapter"] != report(run)["adapter"]


def test_eval_gives_the_same_numbers_and_the_verdict_comes_last(run, tmp_path, capsys):
    assert evaluation.main(evaluation.Settings(adapter=str(run), out=str(tmp_path))) == 0
    assert report(tmp_path) == measured(run)
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert re.fullmatch(
        r"inter-task generalization: the adapter's mean performance 0\.\d{3} \[.*\] over \d+ new pairs, epsilon 0.75: "
        r"(yes|no) \(base .*\)",
        last,
    )
    assert evaluation.main(evaluation.Settings(adapter=str(run), epsilon=0.0)) == 0
    assert "epsilon 0: yes" in capsys.readouterr().out


def test_the_label_loss_and_the_options_of_a_run_work(mixture, tmp_path):
    assert (
        train.main(
            settings(
                mixture,
                tmp_path / "x",
                loss="label",
                schedule="cosine",
                gradient_checkpointing=True,
                r=2,
                steps=2,
            )
        )
        == 0
    )
    assert (
        load_file(tmp_path / "x/adapter_model.safetensors")[
            "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
        ].shape[0]
        == 2
    )


def test_training_lowers_the_loss(mixture, tmp_path):
    assert train.main(settings(mixture, tmp_path / "x", steps=15, lr=5e-3, save_every=50)) == 0
    losses = [json.loads(line)["loss"] for line in (tmp_path / "x/log.jsonl").read_text().splitlines()]
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4])


@pytest.mark.parametrize("batch_tokens", (64, 400, 10**6))
@pytest.mark.parametrize("loss", ("vocab", "label"))
def test_a_step_in_ragged_passes_has_the_gradient_of_the_plain_batch(mixture, loss, batch_tokens):
    """Shared prefixes, one position and accumulation against each whole row by itself, mean of the batch, full logits."""
    small = load_mixture(mixture)
    tokenizer, model = load_tokenizer(ROOT / "data/base"), load_model(ROOT / "data/base")
    torch.manual_seed(0)
    add_lora(model, 4)
    for name, parameter in adapter_tensors(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    parameters = list(adapter_tensors(model).values())
    rows = {task.name: small.train_rows(task, 0) for task in small.train}
    (groups,) = training_order(small, rows, [], seed=0, steps=1, batch_size=12, group_size=5)
    assert len(groups) > 2 and len({len(group.rows) for group in groups}) > 1  # uneven groups
    ids = {task.name: tokenizer.label_ids(list(task.labels)) for task in small.train}
    plain = 0.0
    for group in groups:
        for row in group.rows:
            tokens = torch.tensor([encode_row(tokenizer, group.task, row.text).ids])
            logits = model.logits(model(tokens))[0, -1]
            if loss == "label":
                logits = logits[ids[group.task.name]]
            target = row.label if loss == "label" else ids[group.task.name][row.label]
            plain = plain - logits.log_softmax(-1)[target] / 12
    expected = torch.autograd.grad(plain, parameters)
    encoded = encode_groups(tokenizer, groups)
    result = training_step(model, encoded, groups, loss=loss, batch_tokens=batch_tokens)
    assert result.losses["loss"] == pytest.approx(plain.item(), rel=1e-5)
    for parameter, gradient in zip(
        parameters, expected
    ):  # sums of a thousand products in another order: 1e-4 was seen
        assert (parameter.grad - gradient).abs().max() <= 5e-4 * gradient.abs().max()


def test_passes_have_about_equal_tokens_and_every_row_once(mixture):
    small, tokenizer = load_mixture(mixture), load_tokenizer(ROOT / "data/base")
    rows = {task.name: small.train_rows(task, 0) for task in small.train}
    (groups,) = training_order(small, rows, [], seed=0, steps=1, batch_size=24, group_size=8)
    encoded = encode_groups(tokenizer, groups)
    passes = step_passes(encoded, 500)
    texts = [text for taken in passes for part in taken.rows for text in part.ids]
    assert sorted(texts) == sorted(text for group in encoded for text in group.ids)
    tokens = [len(pack([part.ids for part in taken.rows]).tokens) for taken in passes]
    assert len(passes) > 2 and max(tokens) <= 500 + max(map(len, texts)) and min(tokens) > max(tokens) / 2
    assert len(step_passes(encoded, 10**6)) == 1


def test_scores_are_streamed_as_jsonl_in_order(run, tmp_path, capsys):
    rows = [{"id": f"r{i}", "text": f"Posts the door code {i} on a forum", "other": i} for i in range(3)] + [
        {"text": "Dims the lamp"}
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = f"{ROOT}/data/tasks/far.toml#home-threaten"
    assert (
        evaluation.main(evaluation.Settings(adapter=str(run), score=str(tmp_path / "t.jsonl"), task=task))
        == 0
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.strip().splitlines()]
    assert [line["id"] for line in lines] == ["r0", "r1", "r2", 4] and all(
        0 < line["P"] < 1 for line in lines
    )


def test_a_merged_checkpoint_scores_like_base_and_adapter(run, tmp_path):
    from minimon.evaluate import score
    from minimon.lora import load_adapter
    from minimon.tasks import load_task

    assert evaluation.main(evaluation.Settings(adapter=str(run), merge_to=str(tmp_path / "merged"))) == 0
    model, tokenizer = load_model(ROOT / "data/base"), load_tokenizer(tmp_path / "merged")
    load_adapter(model, run)
    task, texts = (
        load_task(ROOT / "data/tasks/far.toml", "home-threaten"),
        ["Dims the lamp", "Posts the door code on a forum"],
    )
    merged = score(load_model(tmp_path / "merged"), tokenizer, task, texts)
    assert torch.allclose(merged, score(model, tokenizer, task, texts), atol=1e-5)


# ---- interruption ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_saves_says_how_to_go_on_and_does(
    run, mixture, tmp_path, capfd, monkeypatch, number, code
):
    whole = minimon.steps.answer_loss

    def loss(*arguments):
        os.kill(os.getpid(), number)  # in the middle of the first step
        monkeypatch.setattr(minimon.steps, "answer_loss", whole)
        return whole(*arguments)

    monkeypatch.setattr(minimon.steps, "answer_loss", loss)
    with pytest.raises(SystemExit) as stopped, one_line_errors("the same command with --resume"):
        train.main(settings(mixture, tmp_path / "x"))
    assert stopped.value.code == code
    said = capfd.readouterr().err
    assert "stopping after this step" in said and "to go on: the same command with --resume" in said
    assert train.main(settings(mixture, tmp_path / "x", resume=True)) == 0
    assert (tmp_path / "x/adapter_model.safetensors").read_bytes() == (
        run / "adapter_model.safetensors"
    ).read_bytes()


def test_a_run_stopped_while_it_evaluates_goes_on_there(run, mixture, tmp_path, monkeypatch):
    def stop(*arguments, **keywords):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    with monkeypatch.context() as patch:
        patch.setattr(minimon.run.measured, "measure", stop)
        with pytest.raises(KeyboardInterrupt):
            train.main(settings(mixture, tmp_path / "x"))
    assert not (tmp_path / "x/report.json").exists()
    monkeypatch.setattr(train, "training_step", None)  # no step is taken again
    assert train.main(settings(mixture, tmp_path / "x", resume=True)) == 0
    assert report(tmp_path / "x") == report(run)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(
    mixture, tmp_path, monkeypatch
):
    whole, calls = minimon.steps.answer_loss, []

    def loss(*arguments):
        calls.append(1)
        batch, total = whole(*arguments)
        return batch, total * (float("nan") if len(calls) > 4 else 1)

    monkeypatch.setattr(minimon.steps, "answer_loss", loss)
    with pytest.raises(ValueError, match=r"step \d: expected a finite loss.*lower --lr"):
        train.main(settings(mixture, tmp_path / "x", steps=8))
    state = load_file(tmp_path / "x/state.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_resume_starts_where_there_is_nothing_and_says_when_all_is_done(run, mixture, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert train.main(settings(mixture, tmp_path / "empty", resume=True, steps=1)) == 0
    assert "nothing was saved there: a new run" in capsys.readouterr().out
    before = (run / "report.json").stat().st_mtime_ns
    assert train.main(settings(mixture, run, resume=True)) == 0
    assert "finished" in capsys.readouterr().out and (run / "report.json").stat().st_mtime_ns == before


def test_overwrite_replaces_a_run_and_nothing_else(mixture, tmp_path):
    assert train.main(settings(mixture, tmp_path / "x", steps=1)) == 0
    (tmp_path / "x/notes.txt").write_text("mine")
    assert train.main(settings(mixture, tmp_path / "x", steps=2, overwrite=True)) == 0
    assert (
        len((tmp_path / "x/log.jsonl").read_text().splitlines()) == 2 and (tmp_path / "x/notes.txt").exists()
    )


def test_a_setting_that_changed_is_refused_by_name_on_resume(run, mixture):
    (run.parent / "half").mkdir()
    for name in ("settings.json", "log.jsonl"):
        (run.parent / "half" / name).write_bytes((run / name).read_bytes())
    with pytest.raises(ValueError, match=r"--lr was 0.003, now 0.1"):
        train.main(settings(mixture, run.parent / "half", resume=True, lr=0.1))


# ---- mistakes: one line, exit code 2, nothing half-written ---------------------------------------------------------------------


def base_copy(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    for path in (ROOT / "data/base").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def edit_json(name, **changes):
    def edit(folder):
        table = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps(table))

    return edit


MISTAKES = {
    "a missing safetensors file": (
        lambda folder: (folder / "model.safetensors").unlink(),
        ["model.safetensors"],
    ),
    "a truncated safetensors file": (truncate, ["model.safetensors", "whole safetensors file"]),
    "a missing tensor": (edit_json("config.json", num_hidden_layers=6), ["missing tensor model.layers.5."]),
    "a tensor of the wrong shape": (
        edit_json("config.json", intermediate_size=449),
        ["expected shape (449, 160)", "got (448, 160)"],
    ),
    "an unknown architecture": (
        edit_json("config.json", model_type="mamba"),
        ["config.json", "'mamba'", "qwen3"],
    ),
    "a tokenizer that is no JSON": (
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        ["tokenizer.json"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_broken_base_is_refused(mistake, mixture, tmp_path):
    change, words = MISTAKES[mistake]
    folder = base_copy(tmp_path)
    change(folder)
    with pytest.raises((ValueError, OSError)) as error:
        train.main(settings(mixture, tmp_path / "out", model=str(folder)))
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value), error.value
    assert not (tmp_path / "out").exists()


def test_a_label_that_is_not_one_token_is_refused_with_others_shown(mixture, tmp_path):
    (tmp_path / "shell.toml").write_text(
        (ROOT / "data/tasks/shell.toml")
        .read_text()
        .replace("../rows", str(ROOT / "data/rows"))
        .replace("Yes = [1]", "Affirmative = [1]")
    )
    (tmp_path / "m.toml").write_text(
        mixture.read_text().replace(f"{ROOT}/data/tasks/shell.toml", str(tmp_path / "shell.toml"))
    )
    with pytest.raises(ValueError, match="label 'Affirmative'.*one token there: .*Yes"):
        train.main(settings(tmp_path / "m.toml", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_mistakes_on_the_command_line_are_one_line_with_exit_code_2(run, mixture, tmp_path):
    """Real processes: no traceback, nothing on standard output, no run directory."""
    finished = run / "report.json"
    before = finished.read_bytes()
    for words, expected in [
        (["train.py", "--mixture", mixture, "--out", run], "--overwrite"),
        (["train.py", "--device", "cuda:99", "--out", tmp_path / "o"], "--device: expected a CUDA device"),
        (["train.py", "--mixture", tmp_path / "none.toml", "--out", tmp_path / "o"], "none.toml"),
        (["eval.py", "--adapter", tmp_path], "--model"),
    ]:
        code, out, error = ended(*words)
        assert code == 2 and expected in error and not out, error
        assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    assert finished.read_bytes() == before and not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(steps=0), "--steps"),
        (dict(batch_size=-1), "--batch-size"),
        (dict(epsilon=2.0), "--epsilon"),
        (dict(lr=float("nan")), "--lr"),
        (dict(max_grad_norm=0.0), "--max-grad-norm"),
        (dict(weight_decay=-1.0), "--weight-decay"),
        (dict(lora_alpha=0.0), "--lora-alpha"),
        (dict(quick=True), "--quick: expected no --mixture"),
        (dict(overwrite=True, resume=True), "--overwrite and --resume: expected one"),
        (dict(stop_early=True), "--stop-early: expected training tasks with validation rows"),
        (dict(base_scores="no/such/scores"), "--base-scores: expected a file in a directory that is there"),
        (dict(device="tpu"), "--device"),
        (dict(model="no/such-model"), "no/such-model"),
        (dict(compile=True, shard=True), "--compile and --shard"),
    ],
)
def test_a_setting_out_of_range_is_refused(mixture, tmp_path, monkeypatch, change, words):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((ValueError, OSError), match=words):
        train.main(settings(mixture, tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(adapter="no/such-run"), "--adapter: expected a directory, found none at no/such-run"),
        (dict(adapter="data", temperature=True), "--temperature: expected --calibrate"),
        (dict(adapter="data", epsilon=2.0), "--epsilon"),
        (dict(adapter="data", batch_tokens=0), "--batch-tokens"),
        (
            dict(adapter="data", score="x", task="y", shots=2),
            "--shots: expected it where splits .* beside --score",
        ),
        (dict(model="data/base"), "--mixture: expected one, since there is no settings.json"),
    ],
)
def test_what_eval_cannot_use_is_refused(change, words):
    with pytest.raises((ValueError, OSError), match=words):
        evaluation.main(evaluation.Settings(**change))
