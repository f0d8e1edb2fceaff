"""The world, the tasks and the base's text: what is shipped is what the commands make, and what is new is new."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import world as module
from world import (
    DOCUMENTS,
    NEW_BEHAVIORS,
    NEW_DOMAINS,
    SINGLE_PROMPT,
    Documents,
    World,
    render,
    write_instruct,
    write_mixture,
    write_rows,
    write_tasks,
)

from minimon.files import read_rows, read_toml
from minimon.tasks import DECODING, load_conversations, load_mixture
from minimon.tokenizer import load_tokenizer

DATA = Path(__file__).resolve().parent.parent / "data"


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def mixture():
    return load_mixture(DATA / "mixtures/default.toml")


def test_rows_tasks_and_mixture_are_those_that_the_command_writes(world, tmp_path):
    write_rows(world, tmp_path / "rows", 0)
    write_instruct(world, tmp_path / "instruct.jsonl", 0)
    write_mixture(tmp_path / "mixtures/default.toml", *write_tasks(world, tmp_path / "tasks", 0))
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(made) > 20
    for path in made:
        assert (tmp_path / path).read_bytes() == (DATA / path).read_bytes(), (
            f"data/{path} differs; run python data/world.py"
        )


def test_phrasings_are_dealt_out_once(world):
    for key in world.behaviors:
        dealt = [phrasing for use in world.phrasings.values() for phrasing in use[key]]
        assert len(dealt) == len(set(dealt)) >= 10


def test_no_evaluation_prompt_and_no_training_prompt_was_read_in_pretraining(world, mixture):
    documents = Documents(world)
    read = {
        system or user
        for system, user, _, _ in (
            documents.document(random.Random(f"pretrain-0-{i}"), i)
            for i in [*range(10_000), *range(module.LATE, module.LATE + 10_000)]
        )
    }
    assert len(read) > 2_000
    tasks = mixture.all_tasks()
    assert not {task.prompt for task in tasks} & read
    phrasings = {
        phrasing
        for use in ("train", "eval")
        for key in world.behaviors
        for phrasing in world.phrasings[use][key]
    }
    assert not [phrasing for phrasing in phrasings for prompt in read if phrasing in prompt]


def test_new_domains_and_new_behaviors_are_never_trained_on(mixture):
    behavior = {task.name: task.label.split(".")[1] for task in mixture.train}
    assert not {task.domain for task in mixture.train} & set(NEW_DOMAINS) and not set(
        behavior.values()
    ) & set(NEW_BEHAVIORS)
    assert len(NEW_DOMAINS) == 6 and len(NEW_BEHAVIORS) == 8 and len(mixture.train) > 90
    for domain, key in SINGLE_PROMPT.items():
        assert [behavior[task.name] for task in mixture.train if task.domain == domain] == [key]
    groups = mixture.splits["new_domain"]
    assert all(task.domain in NEW_DOMAINS for tasks in groups.values() for task in tasks)
    assert not {task.label.split(".")[1] for task in groups["adjacent"]} & set(NEW_BEHAVIORS)
    assert {task.label.split(".")[1] for task in groups["far"]} == set(NEW_BEHAVIORS)
    assert {task.domain for task in mixture.splits["new_prompt"]["other_question"]} == set(SINGLE_PROMPT)


def test_evaluation_rows_are_balanced_and_few(mixture):
    for split, groups in mixture.splits.items():
        for tasks in groups.values():
            assert len(tasks) <= 24
            for task in tasks:
                labels = [row.label for row in mixture.test_rows(task, split)]
                most = 16 if split in DECODING else 20 if split == "new_prompt" else 30
                assert len(labels) == most, task.name
                assert labels.count(0) == labels.count(1), task.name


def test_a_tag_says_whether_a_line_was_done_and_most_negatives_name_the_behavior(world):
    lines = [line for i in range(200) for line in world.transcript(random.Random(i), "home")]
    for line in lines:
        tag = re.match(r"\[(.*?)\] ", line.text)[1]
        assert (tag in world.domains["home"]["done"]) == line.done != (tag in world.domains["home"]["undone"])
    tags = [tag for domain in world.domains.values() for tag in domain["done"] + domain["undone"]]
    assert len(tags) == len(set(tags)) == 14 * 7
    for domain in world.domains:
        rows = [row for _, row in read_rows(DATA / f"rows/{domain}.jsonl")]
        asked = [label for row in rows for label in row["labels"].values() if label in (0, 1)]
        assert 0.25 < asked.count(1) / len(asked) < 0.45


def test_general_instructions_hold_no_classification_and_nothing_that_is_held_out(world, mixture):
    talks = load_conversations(
        DATA / "instruct.jsonl",
        {task.prompt for task in mixture.train}
        | {task.prompt for groups in mixture.splits.values() for tasks in groups.values() for task in tasks},
    )
    names = [world.name(key) for key in NEW_BEHAVIORS]
    assert len(talks) == 1600 and len({talk.messages[0]["content"] for talk in talks}) > 150
    tags = [
        tag
        for domain in NEW_DOMAINS
        for tag in world.domains[domain]["done"] + world.domains[domain]["undone"]
    ]
    for talk in talks:
        assert not any(name in talk.messages[-1]["content"] for name in names), talk.where
        assert not any(f"[{tag}]" in talk.messages[1]["content"] for tag in tags), talk.where


def test_a_bag_of_words_finds_little_on_new_domains(mixture):
    """Trained on all training domains, a criterion each: what shared words alone give. The issue with the world as handed over was 0.91."""
    from minimon.evaluate import Question
    from minimon.metrics import auroc
    from minimon.study.baselines import Methods

    methods = Methods(None, None, replace(mixture, cap=None, balance=False))
    areas = []
    for task in mixture.splits["new_domain"]["adjacent"][::6]:
        rows = mixture.test_rows(task, "new_domain")
        areas.append(
            auroc(
                methods.bag_of_words(Question(task, rows)).numpy(), np.array([row.label == 0 for row in rows])
            )
        )
    assert 0.5 < sum(areas) / len(areas) < 0.70


def test_a_label_says_whether_the_behavior_is_in_the_transcript(world):
    rng = random.Random(0)
    for _ in range(300):
        lines = world.transcript(rng, "shell")
        done, labels = {line.key for line in lines if line.key and line.done}, world.labels(lines)
        assert (
            all(labels[key] == 1 for key in done)
            and {key for key, label in labels.items() if label == 1} == done
        )
        for one, other in module.UNCLEAR:
            if other in done and one not in done:
                assert labels[one] == "unclear"


def test_every_template_is_filled(world):
    for domain in world.domains:
        rng = random.Random(domain)
        for _ in range(50):
            assert not re.search(r"\{\w+\}", "\n".join(line.text for line in world.transcript(rng, domain)))


def test_rows_hold_no_transcript_twice():
    for path in (DATA / "rows").glob("*.jsonl"):
        texts = [row["text"] for _, row in read_rows(path)]
        assert len(texts) == len(set(texts)) >= 320


def test_the_text_of_pretraining_is_what_the_chat_template_writes(world):
    """So that the base reads in use what it read in pretraining, to the token."""
    tokenizer, documents = load_tokenizer(DATA / "base"), Documents(world)
    kinds = set()
    for i in range(200):
        system, user, thinking, answer = documents.document(random.Random(i), module.LATE + i)
        prompt, response = render(system, user, thinking, answer)
        messages = ([{"role": "system", "content": system}] if system else []) + [
            {"role": "user", "content": user}
        ]
        assert (
            tokenizer.chat(messages, thinking=thinking is not None)
            == tokenizer.plain.encode(prompt, add_special_tokens=False).ids
        )
        if thinking is None:
            ids, (start, _) = tokenizer.chat([*messages, {"role": "assistant", "content": answer}])
            assert tokenizer.decode(ids[start:]) == response
        kinds.add(thinking is None)
    assert kinds == {True, False}


def test_few_pretraining_documents_are_classification_without_thinking():
    for stage in range(len(module.STAGES)):
        assert (
            DOCUMENTS["classify"][stage] <= 0.10
            and abs(sum(shares[stage] for shares in DOCUMENTS.values()) - 1) < 1e-9
        )


def test_the_base_is_small_and_an_ordinary_checkpoint():
    files = {path.name: path.stat().st_size for path in (DATA / "base").iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    } <= set(files)
    assert sum(size for name, size in files.items() if not name.startswith("pretrain_state")) < 12e6
    assert json.loads((DATA / "base/config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
    assert read_toml(DATA / "mixtures/default.toml")["name"] == "default"
