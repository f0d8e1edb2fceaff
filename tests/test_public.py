"""Public data sets: fetching, a formatter each, and what the shipped task files and mixtures promise."""

import functools
import hashlib
import http.server
import json
import re
import threading
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import formatters
import public
import pytest
from public_sets import SETS, write_set

from minimon.tasks import load_conversations, load_mixture, load_tasks, normal

ROOT = Path(__file__).resolve().parent.parent
REGISTRY = tomllib.loads((ROOT / "data/public.toml").read_text())
TASKS = [task for path in sorted((ROOT / "data/tasks/public").glob("*.toml")) for task in load_tasks(path)]
MIXTURES = {
    name: load_mixture(ROOT / f"data/mixtures/{name}.toml", check=False) for name in ("real", "real-small")
}
FETCHED = (ROOT / "data/public/rows").is_dir()


def refused(call, *words):
    with pytest.raises((ValueError, OSError)) as error:
        call()
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), error.value


def formatter(name):
    return getattr(formatters, name.replace("-", "_"))


# ---- formatters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_a_formatter_yields_text_label_and_group_and_no_field_that_leaks_the_label(name, tmp_path):
    rows = list(formatter(name)(write_set(name, tmp_path)))
    assert {row["text"]: row["label"] for row in rows} == SETS[name][1]
    assert all(isinstance(row["group"], str) and row["group"] for row in rows)
    assert not any("HIDDEN" in row["text"] for row in rows)


def test_every_set_of_the_registry_has_a_formatter_and_a_fixture():
    assert set(SETS) | {"instruct"} == set(REGISTRY)
    assert all(callable(formatter(name)) for name in REGISTRY)


@pytest.mark.parametrize("name", ["disfluent", "hate-emoji", "nonsense", "simple-english", "vulnerability"])
def test_rows_made_of_one_record_are_one_group(name, tmp_path):
    rows = list(formatter(name)(write_set(name, tmp_path)))
    assert len(rows) == 2 and len({row["group"] for row in rows}) == 1


def test_matched_formatters_keep_as_many_of_either_label_at_every_length():
    @formatters.matched
    def uneven(files):
        for length in range(1, 300):
            yield formatters.row("x" * length, length % 3 == 0)

    rows = list(uneven([]))
    bands = Counter((len(row["text"]) // 50, row["label"]) for row in rows)
    assert (
        len(rows) > 100
        and Counter(row["label"] for row in rows)[0] == Counter(row["label"] for row in rows)[1]
    )
    assert all(abs(bands[band, 0] - bands[band, 1]) <= 8 for band in range(6))


def test_parts_go_to_files_of_their_own(tmp_path):
    files = {f"owner/{name}.jsonl": "" for name in ("one", "two")}
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("\n".join(LINES[:2]))
    public.write_rows("persona", {"address": "https://nowhere.invalid", "files": files}, tmp_path)
    assert {path.name for path in (tmp_path / "rows").iterdir()} == {"persona-one.jsonl", "persona-two.jsonl"}


def test_instructions_are_conversations_without_classification_short_answers_and_long_ones(tmp_path):
    def record(instruction, output, **more):
        return {"instruction": instruction, "instances": [{"input": "", "output": output}], **more}

    answer = "A long enough answer."
    records = [
        record("Write.", answer),
        record("Sort.", answer, is_classification=True),
        record("Spam?", "Spam"),
    ]
    records.append(record("Copy " + "x" * 1500, answer))
    path = tmp_path / "seed.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in records))
    rows = list(formatters.instruct([path]))
    assert [row["messages"][0]["content"] for row in rows] == ["Write."]
    path.write_text(json.dumps(rows[0]) + "\n")
    assert load_conversations(path)[0].messages[-1]["content"] == answer


@pytest.mark.parametrize("name", REGISTRY)
def test_a_fetched_set_yields_the_counted_rows(name):
    files = [public.local(REGISTRY[name], file, ROOT / "data/public") for file in REGISTRY[name]["files"]]
    if not all(path.is_file() for path in files):
        pytest.skip(f"{name} is not fetched: python data/public.py {name}")
    whole = getattr(formatter(name), "__wrapped__", formatter(name))
    rows = list(whole(files))
    counts = (
        {"conversations": len(rows)} if name == "instruct" else Counter(str(row["label"]) for row in rows)
    )
    assert dict(counts) == REGISTRY[name]["counts"]


# ---- the shipped task files -----------------------------------------------------------------------


def test_every_set_is_pinned_by_commit_and_sha256_and_says_its_licence():
    for name, table in REGISTRY.items():
        assert re.fullmatch(
            r"https://raw\.githubusercontent\.com/[\w.-]+/[\w.-]+/[0-9a-f]{40}", table["address"]
        ), name
        assert table["licence"] and table["files"], name
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in table["files"].values()), name


def test_every_task_reads_a_set_of_the_registry_and_every_set_has_a_task():
    assert all(task.path.resolve().parent == ROOT / "data/public/rows" for task in TASKS)
    assert {public.set_of(task.path, REGISTRY) for task in TASKS} == set(REGISTRY) - {"instruct"}


def test_names_are_unique_and_prompts_are_too_but_where_a_trained_prompt_meets_a_new_domain():
    names = [task.name for task in TASKS]
    assert len(set(names)) == len(names) >= 100
    again = [task for task in TASKS if Path(task.where).stem == "same_prompt"]
    prompts = [normal(task.prompt) for task in TASKS if task not in again]
    assert len(set(prompts)) == len(prompts)
    assert {normal(task.prompt) for task in again} < set(prompts)


def test_prompts_name_the_answers_and_a_third_of_the_training_tasks_has_others_than_yes_and_no():
    for task in TASKS:
        assert all(re.search(rf"\b{label}\b", task.prompt, re.IGNORECASE) for label in task.labels), task.name
    train = MIXTURES["real"].train
    assert sum(list(task.labels) != ["Yes", "No"] for task in train) >= len(train) / 4


def test_rows_that_are_not_fetched_are_refused_with_the_command_that_fetches_them(tmp_path):
    missing = replace(TASKS[0], path=tmp_path / "public/rows/persona-x.jsonl")
    refused(lambda: missing.rows, "persona-x.jsonl", "python data/public.py")


# ---- the mixtures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MIXTURES)
def test_no_prompt_of_the_evaluation_is_trained_on_where_it_should_be_new(name):
    mixture = MIXTURES[name]
    trained = {normal(task.prompt) for task in mixture.train}
    domains = {task.domain for task in mixture.train}
    for split in ("new_domain", "new_prompt"):
        tasks = [task for group in mixture.splits[split].values() for task in group]
        assert not trained & {normal(task.prompt) for task in tasks}
        assert all((task.domain in domains) == (split == "new_prompt") for task in tasks)
    same = mixture.splits["same_prompt"][""]
    assert all(normal(task.prompt) in trained and task.domain not in domains for task in same)


@pytest.mark.parametrize("name", MIXTURES)
def test_every_set_of_a_mixture_has_a_licence_of_the_repository(name):
    for task in MIXTURES[name].all_tasks():
        licence = REGISTRY[public.set_of(task.path, REGISTRY)]["licence"]
        assert licence != public.UNLICENSED and "badge" not in licence, task.name


def test_the_real_mixture_is_as_wide_as_it_says():
    mixture = MIXTURES["real"]
    assert len(mixture.train) == 40 and len({task.domain for task in mixture.train}) == 25
    new = mixture.splits["new_domain"]
    assert set(new) == {"adjacent", "far"} and sum(map(len, new.values())) >= 12
    assert {"agent-risk", "sql-agent", "shell-agent", "airline-agent"} <= {task.name for task in new["far"]}
    assert set(mixture.splits["new_prompt"]) == {"other_criterion", "reversed", "renamed", "text_first"}
    assert {"thinking", "summary", "same_prompt"} <= set(mixture.splits)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.skipif(not FETCHED, reason="needs the rows: python data/public.py")
def test_a_fetched_mixture_passes_its_checks_with_enough_rows_a_task(name):
    mixture = load_mixture(ROOT / f"data/mixtures/{name}.toml")
    assert all(len(mixture.train_rows(task, 0)) == 250 for task in mixture.train)
    for split, groups in mixture.splits.items():
        rows = [len(mixture.test_rows(task, split)) for tasks in groups.values() for task in tasks]
        assert min(rows) >= min(40, mixture.options[split].rows or mixture.eval_rows)


# ---- fetching -------------------------------------------------------------------------------------


STATEMENTS = [("I am kind.", " Yes"), ("I am cold.", " No"), ("I do help.", " Yes"), ("I do harm.", " No")]
LINES = [json.dumps({"statement": text, "answer_matching_behavior": answer}) for text, answer in STATEMENTS]
FILES = {
    "data/one.jsonl": "\n".join(LINES[:2]).encode(),
    "data/two words.jsonl": "\n".join(LINES[2:]).encode(),
}


@pytest.fixture
def sets(tmp_path):
    """A registry of one set in two files, and a folder that holds them."""
    here = tmp_path / "mirror/owner/name/commit"
    for name, data in FILES.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(data)
    files = "".join(f'"{name}" = "{hashlib.sha256(data).hexdigest()}"\n' for name, data in FILES.items())
    address = 'address = "https://nowhere.invalid/owner/name/commit"\nlicence = "MIT"\n'
    (tmp_path / "sets.toml").write_text(f"[oversight]\n{address}[oversight.files]\n{files}")
    return tmp_path


def fetch(sets, mirror, *flags, names=("oversight",)):
    options = ["--folder", str(sets / "got"), "--registry", str(sets / "sets.toml"), "--from", str(mirror)]
    return public.main([*names, *options, *flags])


def got(sets, name="data/one.jsonl"):
    return sets / "got/owner/name/commit" / name


def test_files_come_from_a_folder_whole_and_become_rows(sets, capsys):
    assert fetch(sets, sets / "mirror") == 0
    assert all(got(sets, name).read_bytes() == data for name, data in FILES.items())
    assert "licence: MIT" in capsys.readouterr().out
    rows = [json.loads(line) for line in (sets / "got/rows/oversight.jsonl").read_text().splitlines()]
    assert {(row["text"], row["label"]) for row in rows} == {
        (text, int(a == " Yes")) for text, a in STATEMENTS
    }
    assert not list(sets.rglob("*.part")) and not list(sets.rglob("*.tmp"))


@pytest.mark.parametrize("name", FILES)
def test_one_byte_changed_is_refused_and_no_rows_are_written(sets, name):
    source = sets / "mirror/owner/name/commit" / name
    good = source.read_bytes()
    source.write_bytes(good[:5] + bytes([good[5] ^ 1]) + good[6:])
    refused(lambda: fetch(sets, sets / "mirror"), name, "sha256", "1 files failed")
    assert (
        not got(sets, name).exists() and not list(sets.rglob("*.part")) and not (sets / "got/rows").exists()
    )
    source.write_bytes(good)
    assert fetch(sets, sets / "mirror") == 0
    got(sets, name).write_bytes(good[:5] + bytes([good[5] ^ 1]) + good[6:])
    assert fetch(sets, sets / "mirror") == 0 and got(sets, name).read_bytes() == good  # fetched again


class Server(http.server.SimpleHTTPRequestHandler):
    """A folder over HTTP, with ranges unless the class says otherwise; notes what it was asked."""

    asked, ranges = [], True

    def do_GET(self):
        Server.asked.append(self.headers.get("Range"))
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        data, start = path.read_bytes(), self.headers.get("Range") if self.ranges else None
        begin = int(start.removeprefix("bytes=").rstrip("-")) if start else 0
        if begin >= len(data):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        self.wfile.write(data[begin:])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(sets):
    Server.asked, Server.ranges = [], True
    handler = functools.partial(Server, directory=sets / "mirror")
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize("ranges", [True, False])
def test_what_was_cut_off_is_continued(sets, server, ranges):
    Server.ranges = ranges
    got(sets).parent.mkdir(parents=True)
    got(sets).with_name("one.jsonl.part").write_bytes(FILES["data/one.jsonl"][:40])
    assert fetch(sets, server) == 0
    assert Server.asked == ["bytes=40-", None]
    assert all(got(sets, name).read_bytes() == data for name, data in FILES.items())
    assert fetch(sets, server) == 0 and len(Server.asked) == 2  # what is there and whole is not fetched again


def test_a_part_as_long_as_the_file_starts_over(sets, server):
    got(sets).parent.mkdir(parents=True)
    got(sets).with_name("one.jsonl.part").write_bytes(b"x" * 2000)
    assert fetch(sets, server) == 0 and got(sets).read_bytes() == FILES["data/one.jsonl"]


def test_a_missing_file_does_not_stop_the_others_and_is_named(sets, server):
    (sets / "mirror/owner/name/commit/data/one.jsonl").unlink()
    refused(lambda: fetch(sets, server), "one.jsonl", "404", "1 files failed", "run it again")
    assert got(sets, "data/two words.jsonl").exists() and not got(sets).exists()


def test_a_set_without_a_licence_is_fetched_only_when_asked(sets):
    path = sets / "sets.toml"
    path.write_text(path.read_text().replace('"MIT"', '"none found"'))
    refused(lambda: fetch(sets, sets / "mirror"), "no licence", "--unlicensed", "oversight")
    assert not (sets / "got").exists()
    assert fetch(sets, sets / "mirror", "--unlicensed") == 0 and got(sets).exists()


def test_an_unknown_set_is_refused_and_a_changed_shape_is_one_line(sets):
    refused(lambda: fetch(sets, sets / "mirror", names=("overseen",)), "overseen", "--list")
    (sets / "sets.toml").write_text((sets / "sets.toml").read_text().replace("oversight", "trivia"))
    refused(lambda: fetch(sets, sets / "mirror", names=("trivia",)), "trivia", "formatters.trivia")


def test_a_mixture_names_the_sets_to_fetch():
    names = public.sets_of(str(ROOT / "data/mixtures/real-small.toml"), REGISTRY)
    assert {"persona", "question", "shell-agent", "instruct"} <= set(names)
    assert "sql-agent" not in names and "oversight" in names and len(names) < 25
    refused(
        lambda: public.sets_of(str(ROOT / "data/mixtures/default.toml"), REGISTRY),
        "default.toml",
        "public sets",
    )


def test_rows_of_a_label_are_bounded_and_their_order_stays(monkeypatch):
    monkeypatch.setattr(public, "LABEL_ROWS", 3)
    rows = [formatters.row(f"text {i}", i % 2) for i in range(20)]
    kept = public.bounded(rows)
    assert Counter(row["label"] for row in kept) == {0: 3, 1: 3}
    assert kept == [row for row in rows if row in kept]


def test_a_model_answers_the_instructions_itself(tmp_path):
    """What is written is what decoding gives; an answer cut at the limit would be left out."""
    said = ["Say hi.", "Count the lines of the text."]
    (tmp_path / "rows").mkdir()
    with open(tmp_path / "rows/instruct.jsonl", "w") as file:
        for text in said:
            turns = [
                {"role": "user", "content": text},
                {"role": "assistant", "content": "Somebody's answer."},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    base = str(ROOT / "data/base")
    assert public.main(["--answers", base, "--folder", str(tmp_path)]) == 0
    conversations = load_conversations(tmp_path / "rows/instruct-self.jsonl")
    assert [talk.messages[0]["content"] for talk in conversations] == said
    assert all(talk.messages[1]["content"] not in ("", "Somebody's answer.") for talk in conversations)
