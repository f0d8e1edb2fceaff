"""The world, the tasks and the base's text: what is shipped is what the commands make, and what is new is new."""

import json
import random
import re
from pathlib import Path

import pytest

import world as module
from minimon.files import read_rows, read_toml
from minimon.tasks import load_mixture
from minimon.tokenizer import load_tokenizer
from world import DOCUMENTS, NEW_BEHAVIORS, NEW_DOMAINS, SINGLE_PROMPT, Documents, World, render, write_mixture, write_rows, write_tasks

DATA = Path(__file__).resolve().parent.parent / "data"


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def mixture():
    return load_mixture(DATA / "mixtures/default.toml")


def test_rows_tasks_and_mixture_are_those_that_the_command_writes(world, tmp_path):
    write_rows(world, tmp_path / "rows", 0)
    write_mixture(tmp_path / "mixtures/default.toml", *write_tasks(world, tmp_path / "tasks", 0))
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(made) > 20
    for path in made:
        assert (tmp_path / path).read_bytes() == (DATA / path).read_bytes(), f"data/{path} differs; run python data/world.py"


def test_phrasings_are_dealt_out_once(world):
    for key in world.behaviors:
        dealt = [phrasing for use in world.phrasings.values() for phrasing in use[key]]
        assert len(dealt) == len(set(dealt)) >= 10


def test_no_evaluation_prompt_and_no_training_prompt_was_read_in_pretraining(world, mixture):
    documents = Documents(world)
    read = {documents.document(random.Random(f"pretrain-0-{i}"), i)[0] for i in range(20_000)}
    assert len(read) > 2_000
    tasks = mixture.train + [task for groups in mixture.splits.values() for tasks in groups.values() for task in tasks]
    assert not {task.prompt for task in tasks} & read
    phrasings = {phrasing for use in ("train", "eval") for key in world.behaviors for phrasing in world.phrasings[use][key]}
    assert not [phrasing for phrasing in phrasings for prompt in read if phrasing in prompt]


def test_new_domains_and_new_behaviors_are_never_trained_on(mixture):
    behavior = {task.name: task.label.split(".")[1] for task in mixture.train}
    assert not {task.domain for task in mixture.train} & set(NEW_DOMAINS) and not set(behavior.values()) & set(NEW_BEHAVIORS)
    assert len(NEW_DOMAINS) == 6 and len(NEW_BEHAVIORS) == 8 and len(mixture.train) > 90
    for domain, key in SINGLE_PROMPT.items():
        assert [behavior[task.name] for task in mixture.train if task.domain == domain] == [key]
    groups = mixture.splits["new_domain"]
    assert all(task.domain in NEW_DOMAINS for tasks in groups.values() for task in tasks)
    assert not {task.label.split(".")[1] for task in groups["adjacent"]} & set(NEW_BEHAVIORS)
    assert {task.label.split(".")[1] for task in groups["far"]} == set(NEW_BEHAVIORS)
    assert {task.domain for task in mixture.splits["new_prompt"]["other_question"]} == set(SINGLE_PROMPT)


def test_evaluation_rows_are_balanced_and_few(mixture):
    for groups in mixture.splits.values():
        for tasks in groups.values():
            assert len(tasks) <= 24
            for task in tasks:
                labels = [row.label for row in mixture.test_rows(task)]
                assert 50 <= len(labels) <= 60 and labels.count(0) == labels.count(1), task.name


def test_a_label_says_whether_the_behavior_is_in_the_transcript(world):
    rng = random.Random(0)
    for _ in range(300):
        lines = world.transcript(rng, "shell")
        shown, labels = {key for _, key in lines if key}, world.labels(lines)
        assert all(labels[key] == 1 for key in shown) and {key for key, label in labels.items() if label == 1} == shown
        for one, other in module.UNCLEAR:
            if other in shown and one not in shown:
                assert labels[one] == "unclear"


def test_every_template_is_filled(world):
    for domain in world.domains:
        rng = random.Random(domain)
        for _ in range(50):
            assert not re.search(r"\{\w+\}", "\n".join(line for line, _ in world.transcript(rng, domain)))


def test_rows_hold_no_transcript_twice():
    for path in (DATA / "rows").glob("*.jsonl"):
        texts = [row["text"] for _, row in read_rows(path)]
        assert len(texts) == len(set(texts)) >= 320


def test_the_text_of_pretraining_is_what_the_chat_template_writes(world):
    """So that the base reads in use what it read in pretraining, to the token."""
    tokenizer, documents = load_tokenizer(DATA / "base"), Documents(world)
    kinds = set()
    for i in range(200):
        system, user, thinking, answer = documents.document(random.Random(i), module.EARLY + i)
        prompt, response = render(system, user, thinking, answer)
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        assert tokenizer.chat(messages, thinking=thinking is not None) == tokenizer.plain.encode(prompt, add_special_tokens=False).ids
        if thinking is None:
            ids, (start, _) = tokenizer.chat([*messages, {"role": "assistant", "content": answer}])
            assert tokenizer.decode(ids[start:]) == response
        kinds.add(thinking is None)
    assert kinds == {True, False}


def test_few_pretraining_documents_are_classification_without_thinking():
    assert all(DOCUMENTS["classify"][phase] <= 0.10 and abs(sum(shares[phase] for shares in DOCUMENTS.values()) - 1) < 1e-9 for phase in (0, 1))


def test_the_base_is_small_and_an_ordinary_checkpoint():
    files = {path.name: path.stat().st_size for path in (DATA / "base").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= set(files)
    assert sum(size for name, size in files.items() if not name.startswith("pretrain_state")) < 12e6
    assert json.loads((DATA / "base/config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
    assert read_toml(DATA / "mixtures/default.toml")["name"] == "default"
