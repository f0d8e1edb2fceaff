"""Every file format that is read: a broken file is read right or refused in one line that names it."""

import gzip
import json
import re
import resource
import signal
import zipfile
from contextlib import contextmanager
from pathlib import Path

import broken
import numpy as np
import pytest
import tiny
import torch
import toy_tokenizers
from safetensors.numpy import save

import train
from minimon.checkpoint import load_model
from minimon.formats import records as records
from minimon.formats.inspect_log import read_log
from minimon.lora import adapter_tensors, add_lora, load_adapter, save_adapter
from minimon.report import build_report, read_scores
from minimon.run.cli import one_line
from minimon.run.directory import RunDirectory
from minimon.run.measured import read_sides
from minimon.serve.inputs import read_items
from minimon.serve.monitor import Monitor, run_settings
from minimon.serve.stream import check_about, score_chunk
from minimon.serve.thresholds import SCALE, find_calibration, question
from minimon.steps import instruction_plan
from minimon.study.self_labels import label_quality, labelled_rows, load_labels
from minimon.tasks import load_conversations, load_mixture, load_task
from minimon.tokenizer import load_tokenizer

LOGS = Path(__file__).parent / "golden" / "inspect"
COUNTS, SECONDS, MEGABYTES = {}, 20, 1500
CONFIG = dict(
    tiny.LLAMA,
    num_hidden_layers=1,
    rope_scaling={"rope_type": "linear", "factor": 2.0},
    max_position_embeddings=64,
    rope_theta=10000.0,
    hidden_act="silu",
    rms_norm_eps=1e-6,
    attention_bias=False,
    tie_word_embeddings=False,
)
TASK = {
    "name": '"t"',
    "domain": '"d"',
    "prompt": '"Is it?"',
    "rows": '"rows.jsonl"',
    "text": '"text"',
    "label": '"y"',
    "labels": "{ Yes = [1], No = [0] }",
    "skip": "[2]",
    "split": '"split"',
    "prompt_position": '"before"',
    "default": "0",
    "group": '"id"',
    "unique": "false",
    "max_chars": "1000",
    "reasoning": "false",
    "criterion": '"c"',
}
MESSAGES = [
    {"role": "user", "content": "What is it?"},
    {
        "role": "assistant",
        "content": [{"type": "text", "text": "I look."}, {"type": "image", "image": "x"}],
        "tool_calls": [{"id": "1", "function": {"name": "read", "arguments": '{"path": "a"}'}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": "eggs", "error": {"message": "none"}},
    {"role": "assistant", "content": "Done."},
]


def rows(count=12):
    return [
        {"id": f"r{i}", "text": f"text {i} of {i % 2}", "y": i % 2, "split": "train" if i < 8 else "test"}
        for i in range(count)
    ]


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


@contextmanager
def limited(name):
    """No case may take longer, whatever it waits for."""

    def stop(number, frame):
        raise AssertionError(f"{name}: still at work after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def hold(kind, path, cases, load, named=None):
    """Writes each case to the path and loads it. It may raise ValueError or OSError that name the file in a line."""
    good, failures, read = path.read_bytes(), [], 0
    start, count = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    load()  # as it is, it is read
    for name, data in [*cases, ("a folder", None)]:
        records.cached_records.cache_clear()
        path.unlink()
        path.mkdir() if data is None else path.write_bytes(data)
        count += 1
        with limited(name):
            try:
                load()
                read += 1
            except (ValueError, OSError) as error:
                if (named or path.name) not in one_line(error) and "/x/" not in one_line(error):
                    failures.append(f"{name}: {type(error).__name__} {one_line(error)[:200]}")
            except BaseException as error:  # a panic of tokenizers is no Exception
                if isinstance(error, (AssertionError, KeyboardInterrupt)):
                    failures.append(str(error)[:300])
                else:
                    at = error.__traceback__
                    while at.tb_next:
                        at = at.tb_next
                    failures.append(
                        f"{name}: {type(error).__name__} {str(error)[:150]} "
                        f"({at.tb_frame.f_code.co_filename}:{at.tb_lineno})"
                    )
        path.rmdir() if data is None else path.unlink()
        path.write_bytes(good)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024
    COUNTS[kind] = count
    print(f"{kind}: {count} cases, {read} read, {grown:.0f} MB more")
    assert not failures, f"{len(failures)} of {count}:\n" + "\n".join(failures[:14])
    assert grown < MEGABYTES and read < count


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    return tiny.write_checkpoint(tmp_path / "base", CONFIG)


def test_config_json(checkpoint):
    hold(
        "config.json",
        checkpoint / "config.json",
        broken.json_cases(CONFIG),
        lambda: load_model(checkpoint),
        named="base",
    )


def test_safetensors_of_a_checkpoint(checkpoint):
    tensors = {name: value.numpy() for name, value in tiny.weights(CONFIG).items()}
    hold(
        "model.safetensors",
        checkpoint / "model.safetensors",
        broken.tensor_cases(tensors),
        lambda: load_model(checkpoint),
        named="base",
    )


def test_an_index_of_shards(checkpoint):
    names = sorted(tiny.weights(CONFIG))
    (checkpoint / "model.safetensors").rename(checkpoint / "a.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": {name: "a.safetensors" for name in names}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    climbing = [
        json.dumps(broken.put(index, ("weight_map", names[0]), shard)).encode()
        for shard in (
            "../a.safetensors",
            "/a.safetensors",
            "..\\a.safetensors",
            "a.safetensors/../a.safetensors",
            "./a.safetensors",
            "..safetensors",
            "b.safetensors",
            "a.bin",
            "a.safetensors\n",
            "\0.safetensors",
            "~/a.safetensors",
            "a\u202e.safetensors",
            "a.safetensors ",
        )
    ]
    small = {"weight_map": dict(list(index["weight_map"].items())[:3])}
    hold(
        "index",
        checkpoint / "model.safetensors.index.json",
        [*enumerate(climbing), *broken.json_cases(small)],
        lambda: load_model(checkpoint),
        named="base",
    )


def talk(folder):
    tokenizer = load_tokenizer(folder, date="2026-01-31")
    tokenizer.chat([{"role": "system", "content": "x"}, {"role": "user", "content": "Is it <s> so?\u202e\0"}])
    try:
        tokenizer.label_ids(["Yes", "No"])
    except ValueError as error:
        if not str(error).startswith("label"):  # train.py adds the task's file to it
            raise


@pytest.fixture
def chat(tmp_path):
    template = toy_tokenizers.TEMPLATES["qwen3"]
    return toy_tokenizers.write_checkpoint(
        tmp_path / "base", toy_tokenizers.by_hand(), template, generation_config={"eos_token_id": [1, 2]}
    )


def test_tokenizer_json(chat):
    data = toy_tokenizers.by_hand()
    data["model"]["vocab"] = dict(data["model"]["vocab"])
    small = {**data, "added_tokens": data["added_tokens"]}
    cases = [
        case
        for case in broken.json_cases(small, 5)
        if ".vocab." not in case[0] or case[0].startswith("model.vocab.!")
    ]
    hold("tokenizer.json", chat / "tokenizer.json", cases, lambda: talk(chat), named="base")


def test_tokenizer_config_json(chat):
    path = chat / "tokenizer_config.json"
    hold(
        "tokenizer_config.json",
        path,
        broken.json_cases(json.loads(path.read_text())),
        lambda: talk(chat),
        named="base",
    )


def test_a_chat_template(chat):
    path = chat / "chat_template.jinja"
    made = [
        (text[:40], text.encode())
        for text in (
            "{{ messages }}",
            "{{ messages[5].content }}",
            "{{ 1 / 0 }}",
            "{% for i in range(10 ** 9) %}x{% endfor %}",
            "{{ raise_exception('no') }}",
            "{% if %}",
            "{{ ''.__class__.__mro__ }}",
            "{{ cycler.__init__.__globals__.os.system('true') }}",
            "{% include 'x' %}",
            "{{ x.y.z }}",
            "{{",
            "{% endfor %}",
            "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
            "{{ messages | tojson }}",
            "",
            "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
        )
    ]
    hold(
        "chat_template.jinja",
        path,
        [*made, *broken.text_cases(path.read_text())],
        lambda: talk(chat),
        named="base",
    )


def test_generation_config_json(chat):
    hold(
        "generation_config.json",
        chat / "generation_config.json",
        broken.json_cases({"eos_token_id": [1, 2]}),
        lambda: talk(chat),
        named="base",
    )


# ---- adapters and run directories ----------------------------------------------------------------


@pytest.fixture
def adapter(checkpoint, tmp_path):
    """Of rank 2, with weights that are not zero."""
    model = load_model(checkpoint)
    add_lora(model, 2, 4, ["q_proj", "down_proj"])
    for tensor in adapter_tensors(model).values():
        torch.nn.init.normal_(tensor)
    save_adapter(model, tmp_path / "run", base="base")
    return tmp_path / "run"


def test_adapter_config_json(checkpoint, adapter):
    path = adapter / "adapter_config.json"
    table = json.loads(path.read_text()) | {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 4}}
    hold(
        "adapter_config.json",
        path,
        broken.json_cases(table),
        lambda: load_adapter(load_model(checkpoint), adapter),
        named="run",
    )


def test_adapter_safetensors(checkpoint, adapter):
    from safetensors.numpy import load_file

    path = adapter / "adapter_model.safetensors"
    hold(
        "adapter_model.safetensors",
        path,
        broken.tensor_cases(load_file(path)),
        lambda: load_adapter(load_model(checkpoint), adapter),
        named="run",
    )


def test_a_saved_state_and_its_log(checkpoint, tmp_path):
    model = load_model(checkpoint)
    add_lora(model, 2, 4, ["q_proj"])
    adapter = adapter_tensors(model)
    optimizer = torch.optim.AdamW(adapter.values())
    tensors = {name: value.detach().numpy() for name, value in adapter.items()}
    for name in list(adapter):
        tensors |= {
            f"{name}.step": np.float32(3),
            f"{name}.exp_avg": tensors[name],
            f"{name}.exp_avg_sq": tensors[name],
        }
    tensors = {name: np.asarray(value) for name, value in tensors.items()}
    path = tmp_path / "state.safetensors"
    path.write_bytes(save(tensors, {"format": "pt", "step": "3"}))
    (tmp_path / "log.jsonl").write_text("{}\n" * 5)
    settings = RunDirectory(train.asdict(train.Settings(resume=True, out=str(tmp_path)))).settings
    (tmp_path / "settings.json").write_text(json.dumps(settings))

    def load():
        with RunDirectory(settings) as run:
            run.load_state(adapter, optimizer)

    steps = [
        (step, save(tensors, {"step": step})) for step in ("", "x", "-1", "1.5", "9" * 5000, "nan", " 3", "4")
    ]
    hold("state.safetensors", path, [*steps, *broken.tensor_cases(tensors)], load)
    hold("log.jsonl", tmp_path / "log.jsonl", broken.text_cases("{}\n" * 5), load)
    (tmp_path / "log.jsonl").write_text("{}\n" * 3 + '{"step": 4, "lo')  # written when it was killed
    load()
    assert (tmp_path / "log.jsonl").read_text() == "{}\n" * 3


def test_settings_json(checkpoint, adapter):
    given = train.asdict(train.Settings(resume=True, out=str(adapter)))
    settings = {**RunDirectory(given).settings, "date": "2026-01-31", "dtype": "float32"}
    path = adapter / "settings.json"
    path.write_text(json.dumps(settings))

    def load():
        with RunDirectory(given):
            pass

    hold("settings.json resumed", path, broken.json_cases(settings), load, named="run")
    hold("settings.json evaluated", path, broken.json_cases(settings), lambda: run_settings(adapter))


def test_calibration_json(folder):
    asked = question(load_task(folder / "t.toml"))
    entry = {"t": {**asked, "adapter": "a", "threshold": 0.5, "temperature": 1.0, "scale": SCALE}}
    path = folder / "calibration.json"
    path.write_text(json.dumps(entry))
    hold(
        "calibration.json",
        path,
        broken.json_cases(entry),
        lambda: find_calibration(folder, load_task(folder / "t.toml"), "a"),
    )


def test_labels_jsonl(folder):
    mixture = load_mixture(folder / "m.toml")
    labels = [
        {
            "task": "a",
            "where": f"f:{i}",
            "log_odds": [0.4, -0.4],
            "label": "Yes",
            "well_formed": 1.0,
            "gold": "No",
        }
        for i in range(8)
    ]
    path = folder / "labels.jsonl"
    path.write_text(lines(labels))

    def load():
        found = load_labels(path, mixture, 0)
        labelled_rows(mixture, 0, found), label_quality(found, mixture)

    hold("labels.jsonl", path, of_lines(labels), load)


def of_lines(records):
    """A file of lines with its second one broken."""
    first, second, *rest = (json.dumps(record).encode() for record in records)
    for name, data in broken.json_cases(records[1]):
        yield name, b"\n".join([first, data.replace(b"\n", b" ") if data[:1] == b"{" else data, *rest])
    yield "a line less", b"\n".join([first, *rest])
    yield "a line more", b"\n".join([first, second, second, *rest])


def test_scores_jsonl(folder):
    line = {
        "split": "new_domain",
        "group": "",
        "task": "t",
        "domain": "d",
        "text": "0a",
        "label": 0,
        "criterion": "c",
        "log_odds": {"base": [0.0, 0.0], "adapter": [0.4, -0.4], "empty": [0.0, 0.0]},
    }
    path = folder / "scores.jsonl"
    path.write_text(lines([line] * 3))

    def load():
        scores = read_scores(path)
        build_report(scores, model="m", adapter="a", seed=0, epsilon=0.5, run={})

    hold("scores.jsonl", path, of_lines([line] * 3), load)


def test_scores_of_a_base(tmp_path):
    tensors = {
        "a.log_odds": np.zeros((3, 2), np.float32),
        "a.label_mass": np.full(3, 0.5, np.float32),
        "b.log_odds": np.zeros((3, 2), np.float32),
    }
    path = tmp_path / "known.safetensors"
    path.write_bytes(save(tensors))
    hold("known", path, broken.tensor_cases(tensors), lambda: read_sides(path))


# ---- tasks, mixtures, rows -----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rows.jsonl").write_text(lines(rows()))
    (tmp_path / "new.jsonl").write_text(lines([{**row, "text": f"new {row['text']}"} for row in rows()]))
    (tmp_path / "talks.jsonl").write_text(
        lines([{"messages": MESSAGES[:1] + [{"role": "assistant", "content": "No."}]}] * 3)
    )
    (tmp_path / "t.toml").write_text("".join(f"{key} = {TASK[key]}\n" for key in TASK if key != "group"))
    for name in ("a", "b"):
        text = (
            (tmp_path / "t.toml").read_text().replace('"t"', f'"{name}"').replace("Is it?", f"Is it {name}?")
        )
        (tmp_path / f"{name}.toml").write_text(
            text.replace("rows.jsonl", "rows.jsonl" if name == "a" else "new.jsonl")
        )
    (tmp_path / "m.toml").write_text('[train]\ntasks = ["a.toml"]\n[eval.new_domain]\ntasks = ["b.toml"]\n')
    return tmp_path


def test_a_task(folder):
    path = folder / "t.toml"
    path.write_text("".join(f"{key} = {literal}\n" for key, literal in TASK.items()))
    hold(
        "task",
        path,
        broken.toml_cases(TASK),
        lambda: [task.rows for task in [load_task(path)]],
        named=str(folder),
    )


@pytest.mark.parametrize(
    "head, table",
    [
        (
            "",
            {
                "name": '"m"',
                "train": '{ tasks = ["a.toml"] }',
                "eval": '{ new_domain = { tasks = ["b.toml"] } }',
            },
        ),
        (
            '[eval.new_domain]\ntasks = ["b.toml"]\n[train]\n',
            {"tasks": '["a.toml"]', "weights": "{ a = 1.0 }", "cap": "6", "balance": "true"},
        ),
        (
            '[train]\ntasks = ["a.toml"]\n[eval]\n',
            {
                "rows": "4",
                "new_domain": '{ far = ["b.toml"], rows = 4 }',
                "trained": '{ tasks = ["t.toml"] }',
            },
        ),
        (
            '[train]\ntasks = ["a.toml"]\n[eval.summary]\n',
            {"tasks": '["b.toml"]', "rows": "4", "max_new_tokens": "10", "prompt": '"Sum up."'},
        ),
        (
            '[train]\ntasks = ["a.toml"]\n[eval.new_domain]\ntasks = ["b.toml"]\n[instruct]\n',
            {"rows": '"talks.jsonl"', "schedule": '"joint"', "fraction": "0.5"},
        ),
    ],
    ids=["mixture", "train", "eval", "summary", "instruct"],
)
def test_a_mixture(folder, head, table):
    (folder / "t.toml").write_text((folder / "a.toml").read_text())
    path = folder / "x.toml"
    path.write_text(head + "".join(f"{key} = {literal}\n" for key, literal in table.items()))

    def load():
        mixture = load_mixture(path)
        instruction_plan(train.Settings(), mixture)
        assert isinstance(mixture.name, str) and "/" not in mixture.name

    hold(f"mixture {list(table)[1]}", path, broken.toml_cases(table, head), load, named=str(folder))


def table_cases():
    """CSV: quotes, fields, headers."""
    good = "id,text,y,split\n1,one,1,train\n2,two,0,train\n3,three,1,test\n4,four,0,test\n"
    yield from broken.text_cases(good)
    for name, text in (
        ("an open quote", good + '5,"five'),
        ("a stray quote", good + '5,"fi"ve,1,test\n'),
        ("a field more", good + "5,five,1,test,6\n"),
        ("a field less", good + "5,five\n"),
        ("a name twice", good.replace("id,text", "text,text")),
        ("no name", good.replace("id,", ",")),
        ("a header alone", good.split("\n")[0]),
        ("zeros", good + "5,fi\0ve,1,test\n"),
        ("a long field", good + f"5,{broken.LONG * 3},1,test\n"),
        ("surrogates", good + "5,\\ud800,1,test\n"),
        ("nan", good + "5,x,nan,test\n"),
        ("a huge number", good + f"5,x,{'9' * 5000},test\n"),
        ("empty lines", good.replace("\n", "\n\n")),
        ("semicolons", good.replace(",", ";")),
        ("many fields", good + "," * 100_000),
        ("lone returns", good.replace("2,two", "2,t\rwo")),
    ):
        yield name, text.encode()


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "csv.gz", "jsonl.gz"])
def test_rows(folder, suffix):
    text = "".join(
        f"{key} = {TASK[key]}\n" for key in ("name", "domain", "prompt", "rows", "text", "label", "labels")
    )
    if "sv" in suffix:
        text = text.replace("[1]", '["1"]').replace("[0]", '["0"]')
    (folder / "t.toml").write_text(text.replace("rows.jsonl", f"rows.{suffix}"))
    cases = {
        "csv": table_cases,
        "tsv": table_cases,
        "json": lambda: broken.json_cases(rows(4)),
        "jsonl": lambda: of_lines(rows()),
    }[suffix.removesuffix(".gz")]()
    good = {
        "csv": next(iter(table_cases()))[1] or b"id,text,y\n1,a,1\n",
        "json": json.dumps(rows(4)).encode(),
        "jsonl": lines(rows()).encode(),
    }.get(suffix.removesuffix(".gz"), b"id\ttext\ty\n1\ta\t1\n")
    if suffix == "tsv":
        cases = [(name, data.replace(b",", b"\t")) for name, data in cases]
    if suffix.endswith(".gz"):
        good, plain = gzip.compress(good), list(cases)
        cases = (
            [(name, gzip.compress(data)) for name, data in plain[-40:]]
            + list(broken.byte_cases(good, 40))
            + plain[:20]
        )
    path = folder / f"rows.{suffix}"
    path.write_bytes(good)
    hold(f"rows.{suffix}", path, cases, lambda: load_task(folder / "t.toml").rows)


def test_transcripts(folder):
    (folder / "t.toml").write_text(
        "".join(
            f"{key} = {TASK[key]}\n"
            for key in ("name", "domain", "prompt", "rows", "text", "label", "labels")
        ).replace('text = "text"', 'text = "messages"\nreasoning = true')
    )
    path = folder / "rows.jsonl"
    path.write_text(lines([{"messages": MESSAGES, "y": 1}] * 2))
    nested = [[{"role": "user", "content": "x"}]]
    for _ in range(400):
        nested = [nested]
    deep = [{"type": "text", "text": "x"}]
    for _ in range(400):
        deep = [{"type": "text", "text": deep}]
    more = [
        (f"nested {i}", lines([{"messages": value, "y": 1}]).encode())
        for i, value in enumerate((nested, [{"role": "user", "content": deep}], []))
    ]
    hold(
        "transcripts",
        path,
        [*more, *((name, data) for name, data in of_lines([{"messages": MESSAGES, "y": 1}] * 3))],
        lambda: load_task(folder / "t.toml").rows,
    )


def test_conversations(folder):
    talks = [
        {
            "messages": [
                {"role": "user", "content": f"x {i}"},
                {"role": "assistant", "content": "y", "reasoning_content": "z"},
            ]
        }
        for i in range(3)
    ]
    path = folder / "talks.jsonl"
    path.write_text(lines(talks))
    hold("conversations", path, of_lines(talks), lambda: load_conversations(path))


# ---- logs and streams ----------------------------------------------------------------------------


def test_inspect_logs(tmp_path):
    log = json.loads((LOGS / "plain.json").read_text())
    log = {
        "version": log["version"],
        "status": log["status"],
        "eval": {key: log["eval"][key] for key in list(log["eval"])[:4]},
        "samples": [
            {key: value for key, value in sample.items() if key != "events"} for sample in log["samples"][:2]
        ],
    }
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log))
    hold("log.json", path, broken.json_cases(log), lambda: [record for record in read_log(path)])


@pytest.mark.parametrize("name", ["deflate.eval", "zstd.eval"])
def test_zipped_logs(tmp_path, name):
    data = (LOGS / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data)
    cut = [(f"cut at {i} of 20", data[: len(data) * i // 20]) for i in range(20)]
    for i in range(6):  # the directory at the end and the members' heads, where a flag may say: encrypted
        cut.append(
            (
                f"flag {i}",
                data.replace(b"PK\x01\x02", b"PK\x01\x02", 1)[: -60 - i] + bytes([i]) + data[-59 - i :],
            )
        )
    cut.append(("encrypted", re.sub(rb"(?s)(PK\x01\x02.{4}).", lambda match: match[1] + b"\1", data)))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", "[" * 3_000_000)
    hold(
        name,
        path,
        [
            *cut,
            ("a bomb", (tmp_path / "bomb.zip").read_bytes()),
            *broken.byte_cases(data, 100),
            *((f"end {name}", data[:-200] + tail) for name, tail in broken.byte_cases(data[-200:], 60)),
            *broken.text_cases("{}"),
        ],
        lambda: [record for record in read_log(path)],
    )


def test_transcripts_to_score(folder):
    path = folder / "in.jsonl"
    path.write_text(lines(rows()))
    monitor = Monitor(None, None, load_task(folder / "t.toml"), threshold=0.0)
    monitor.read = lambda texts: (np.zeros((len(texts), 2)), np.zeros(len(texts), int))

    def load():
        for line in score_chunk(monitor, list(read_items([str(path)], monitor.task)), with_text=True):
            json.dumps(line, allow_nan=False).encode()

    hold("rows to score", path, of_lines(rows(3)), load)


def test_what_scores_to_go_on_with_follow_from(tmp_path):
    about = {
        "adapter": "a",
        "task": {"name": "t", "sha256": "0"},
        "threshold": None,
        "input": {"in.jsonl": "0"},
    }
    path = tmp_path / "scores.jsonl.part"
    sidecar = tmp_path / "scores.jsonl.part.about.json"
    sidecar.write_text(json.dumps(about))
    hold(
        "scores to go on with",
        sidecar,
        broken.json_cases(about),
        lambda: check_about(path, sidecar, about),
        "scores.jsonl",
    )


def test_that_many_cases_were_held():
    """Two thousand and more in all; run by itself this says nothing."""
    assert not COUNTS or len(COUNTS) < 25 or sum(COUNTS.values()) >= 2000, COUNTS
