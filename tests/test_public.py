"""Public data sets: fetching, the ways their rows lie, and what the shipped task files promise."""

import functools
import gzip
import hashlib
import http.server
import json
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import download
from minimon.tasks import load_mixture, load_task, load_tasks

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = ROOT / "data/tasks/public"
BASE = 'name = "t"\ndomain = "d"\nprompt = "p"\nlabels = { Yes = ["1"], No = ["0"] }\n'


def task(folder, body, base=BASE):
    (folder / "t.toml").write_text(base + body)
    return load_task(folder / "t.toml")


def read(folder, body, base=BASE):
    return [(row.text, row.label) for row in task(folder, body, base).rows]


def refused(call, *words):
    with pytest.raises((ValueError, OSError)) as error:
        call()
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), error.value


# ---- how rows lie --------------------------------------------------------------------------------------------------------------


def test_gzip_is_opened_and_a_format_may_be_said(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"t": "x", "y": "1"}\n'))
    (tmp_path / "b.json").write_text('{"t": "x", "y": "1"}\n{"t": "z", "y": "0"}\n')
    assert read(tmp_path, 'rows = "a.jsonl.gz"\ntext = "t"\nlabel = "y"\n') == [("x", 0)]
    assert read(tmp_path, 'rows = "b.json"\nformat = "jsonl"\ntext = "t"\nlabel = "y"\n') == [("x", 0), ("z", 1)]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"x" * 1000)[:-9])
    refused(lambda: read(tmp_path, 'rows = "a.jsonl.gz"\ntext = "t"\nlabel = "y"\n'), "a.jsonl.gz", "gzip")


def test_a_table_without_header_has_columns_and_no_quoting(tmp_path):
    (tmp_path / "a.tsv").write_text('1\tsay "hi\n0\t"quoted"\u2028still\n')
    body = 'rows = "a.tsv"\ncolumns = ["y", "t"]\ntext = "t"\nlabel = "y"\n'
    assert read(tmp_path, body) == [('say "hi', 0), ('"quoted"\u2028still', 1)]
    (tmp_path / "a.tsv").write_text("1\tx\n0\n")
    refused(lambda: read(tmp_path, body), "a.tsv:2", "2 fields", "columns")


def test_the_file_may_give_the_label(tmp_path):
    for name in ("yes", "no"):
        (tmp_path / f"{name}.txt").write_text(f"{name} one\n\n{name} two\n")
    assert read(tmp_path, 'rows = "*.txt"\ntext = "line"\nlabel = "@file"\n', BASE.replace('"1"', '"yes.txt"').replace('"0"', '"no.txt"')) == [
        ("no one", 1), ("no two", 1), ("yes one", 0), ("yes two", 0)]


def test_a_record_may_give_many_rows_and_point_to_another(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"q": 3, "good": {"s": "4", "ok": "0"}, "bad": {"s": "5", "ok": "1"}}\n')
    (tmp_path / "q.csv").write_text("n,text\n3,What is 2+2?\n")
    body = 'rows = "a.jsonl"\neach = ["good", "bad"]\ntext = "{@join.text} {@value.s}"\nlabel = "@value.ok"\njoin = { field = "q", file = "q.csv", key = "n" }\n'
    assert read(tmp_path, body) == [("What is 2+2? 4", 1), ("What is 2+2? 5", 0)]
    assert read(tmp_path, body.replace('"@value.ok"', '"@name"'), BASE.replace('"1"', '"bad"').replace('"0"', '"good"'))[1][1] == 0
    (tmp_path / "q.csv").write_text("n,text\n4,x\n")
    refused(lambda: read(tmp_path, body), "a.jsonl:1", "q.csv", "'3'")


def test_rows_are_kept_and_dropped_by_other_fields(tmp_path):
    rows = [("a", "1", None, 1), ("b", "0", "kind one", 1), ("c", "1", "kind two", 2), ("d", "0", "other", 1)]
    (tmp_path / "a.jsonl").write_text('{"about": "the file"}\n' + "".join(json.dumps(dict(zip("tykn", row))) + "\n" for row in rows))
    body = 'rows = "a.jsonl"\ntext = "t"\nlabel = "y"\n'
    assert read(tmp_path, body + 'keep = { k = ["kind*", "other"] }\n') == [("b", 1), ("c", 0), ("d", 1)]
    assert read(tmp_path, body + 'keep = { k = ["*"] }\ndrop = { n = [2], k = ["other"] }\n') == [("b", 1)]


def test_of_several_label_fields_the_first_label_found_counts_and_a_missing_one_has_a_default(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"t": "a", "S": 0, "V": 1}\n{"t": "b", "H": 0}\n{"t": "c"}\n')
    body = 'rows = "a.jsonl"\ntext = "t"\nlabel = ["S", "H", "V"]\n'
    base = BASE.replace('["1"]', "[1]").replace('["0"]', "[0]")
    assert read(tmp_path, body + "default = 0\n", base) == [("a", 0), ("b", 1), ("c", 1)]
    refused(lambda: read(tmp_path, body, base), "a.jsonl:1", "'H'")


def test_a_group_falls_on_one_side_and_repeats_are_left_out(tmp_path):
    rows = [{"t": f"text {i}", "y": str(i % 2), "g": i % 40} for i in range(400)] + [{"t": "text 0", "y": "0", "g": 0}, {"t": "text 1", "y": "0", "g": 99}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = task(tmp_path, 'rows = "a.jsonl"\ntext = "t"\nlabel = "y"\ngroup = "g"\nunique = true\n').rows
    assert len(found) == 399 and "text 1" not in {row.text for row in found}           # once each, and none with two labels
    sides = {}
    for row in found:
        sides.setdefault(int(row.text.split()[1]) % 40, set()).add(row.side)
    assert all(len(group) == 1 for group in sides.values()) and {"train", "test"} == set.union(*sides.values())


@pytest.mark.parametrize("body, words", [
    ('format = "xml"\n', ["format", "'xml'"]), ('each = "a"\n', ["each"]), ("keep = 3\n", ["keep"]), ('join = { file = "q" }\n', ["join"]),
    ("max_chars = 5\n", ["max_chars", "5"]), ("unique = 1\n", ["unique"]), ("group = 1\n", ["group"]), ("source = 1\n", ["source"]),
    ('[source]\naddress = "ftp://x/y"\nlicence = "MIT"\nfiles = { a = "00" }\n', ["sha256", "'00'"]),
    (f'[source]\naddress = "ftp://x/y"\nlicence = "MIT"\nfiles = {{ a = "{"0" * 64}" }}\n', ["address", "ftp"]),
    (f'[source]\naddress = "https://x/y"\nlicence = ""\nfiles = {{ a = "{"0" * 64}" }}\n', ["licence"]),
    (f'[source]\naddress = "https://x/y"\nlicence = "MIT"\nfiles = {{ "../a" = "{"0" * 64}" }}\n', ["'../a'"]),
    (f'[source]\naddress = "https://x/../y"\nlicence = "MIT"\nfiles = {{ a = "{"0" * 64}" }}\n', ["address"])])
def test_a_malformed_option_is_refused_by_name(tmp_path, body, words):
    refused(lambda: task(tmp_path, 'rows = "a.jsonl"\ntext = "t"\nlabel = "y"\n' + body), "t.toml", *words)


def test_a_mixture_may_bound_every_text(tmp_path):
    for name in ("a", "b"):
        rows = [{"t": f"{name} {i} " + "x" * 300, "y": str(i % 2)} for i in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / f"{name}.toml").write_text(BASE.replace('"t"', f'"{name}"').replace('"p"', f'"{name}?"') + f'rows = "{name}.jsonl"\ntext = "t"\nlabel = "y"\n')
    (tmp_path / "m.toml").write_text('max_chars = 200\n[train]\ntasks = ["a.toml"]\n[eval.new_domain]\ntasks = ["b.toml"]\n')
    mixture = load_mixture(tmp_path / "m.toml")
    assert {len(row.text.split("\n")) for row in mixture.train[0].rows} == {3} and mixture.splits["new_domain"][""][0].max_chars == 200


# ---- the shipped task files ----------------------------------------------------------------------------------------------------


MIXTURES = {name: load_mixture(ROOT / f"data/mixtures/{name}.toml", check=False) for name in ("public", "public-small", "public-all")}


def test_the_public_mixture_has_twelve_licensed_sets_and_holds_trajectories_out():
    mixture = MIXTURES["public"]
    tasks = mixture.all_tasks()
    assert len({tuple(task.reading.source.files) for task in tasks}) == len({task.domain for task in tasks}) == 12
    assert all(task.reading.source.licensed for task in tasks)
    held_out = {task.domain for tasks in mixture.splits["new_domain"].values() for task in tasks}
    assert not held_out & {task.domain for task in mixture.train} and {"app-agents", "tool-agents", "airline-agents"} <= held_out
    assert {task.domain for task in mixture.splits["new_prompt"][""]} <= {task.domain for task in mixture.train}
    assert [task.name for task in MIXTURES["public-all"].all_tasks() if not task.reading.source.licensed]


def test_every_public_task_pins_its_files_and_has_a_prompt_of_its_own():
    tasks = [task for path in sorted(PUBLIC.glob("*.toml")) for task in load_tasks(path)]
    assert len({task.prompt for task in tasks}) == len({task.name for task in tasks}) == len(tasks) >= 15
    for task in tasks:
        assert re.fullmatch(r"https://raw\.githubusercontent\.com/[\w.-]+/[\w.-]+/[0-9a-f]{40}", task.reading.source.address), task.name
        assert task.path.resolve() == ROOT / "data/public" and list(task.labels) == ["Yes", "No"]


HIDDEN = {"agent-risk": {"risk_description", "goal", "label"}, "agent-attacked": {"risk_type", "failure_mode", "risk_description", "ambiguous", "label"},
          "agent-injected": {"metadata"}, "airline-agent": {"info", "reward"}, "search-agent": {"ground_truth", "answer_text", "step_labels", "final_label"},
          "hallucination": {"hallucination_spans", "hallucination"}, "arithmetic": {"ground_truth", "is_correct"}, "vulnerability": {"vul_type", "line_changes"}}


@pytest.mark.parametrize("name", HIDDEN)
def test_fields_that_leak_the_label_are_never_shown(name):
    from minimon.formats.transcript import fields_of
    shown = {part for field in fields_of(load_task(PUBLIC / f"{name}.toml").text) for part in field.split(".")}
    assert shown and not shown & HIDDEN[name]


# ---- fetching --------------------------------------------------------------------------------------------------------------------


FILES = {"data/one.jsonl": b"".join(b'{"t": "text %d", "y": "%d"}\n' % (i, i % 2) for i in range(40)), "data/two words.jsonl": b'{"t": "last", "y": "1"}\n'}


@pytest.fixture
def sets(tmp_path):
    """A mixture of two tasks over one source, and a folder and a server that hold it."""
    here = tmp_path / "mirror/owner/name/commit"
    for name, data in FILES.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(data)
    files = "".join(f'"{name}" = "{hashlib.sha256(data).hexdigest()}"\n' for name, data in FILES.items())
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text(BASE.replace('"t"', f'"{name}"').replace('"p"', f'"{name}?"') + (
            'rows = "got"\ntext = "t"\nlabel = "y"\n[source]\naddress = "https://nowhere.invalid/owner/name/commit"\n'
            f'licence = "MIT"\n[source.files]\n{files}'))
    (tmp_path / "m.toml").write_text('[train]\ntasks = ["a.toml"]\n[eval.trained]\ntasks = ["a.toml"]\n')
    return tmp_path


def fetch(sets, base, **changes):
    return download.main(replace(download.Settings(mixture=str(sets / "m.toml"), from_=str(base)), **changes))


def got(sets, name="data/one.jsonl"):
    return sets / "got/owner/name/commit" / name


def test_files_come_from_a_folder_whole_and_the_task_reads_them(sets, capsys):
    refused(lambda: load_mixture(sets / "m.toml"), "one.jsonl", "data/download.py")
    assert fetch(sets, sets / "mirror") == 0
    assert all(got(sets, name).read_bytes() == data for name, data in FILES.items()) and "licence: MIT" in capsys.readouterr().out
    assert len(load_mixture(sets / "m.toml").train[0].rows) == 41 and not list(sets.rglob("*.part"))


@pytest.mark.parametrize("name", FILES)
def test_one_byte_changed_is_refused_when_fetched_and_when_read(sets, name):
    source = sets / "mirror/owner/name/commit" / name
    good = source.read_bytes()
    source.write_bytes(good[:5] + bytes([good[5] ^ 1]) + good[6:])
    refused(lambda: fetch(sets, sets / "mirror"), name, "sha256", "1 of 2 files failed")
    assert not got(sets, name).exists() and not list(sets.rglob("*.part"))
    source.write_bytes(good)
    assert fetch(sets, sets / "mirror") == 0
    got(sets, name).write_bytes(good[:5] + bytes([good[5] ^ 1]) + good[6:])
    refused(lambda: load_task(sets / "a.toml").rows, name, "sha256", "fetch it again")


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
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=sets / "mirror"))
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize("ranges", [True, False])
def test_what_was_cut_off_is_gone_on_with(sets, server, ranges):
    Server.ranges = ranges
    got(sets).parent.mkdir(parents=True)
    got(sets).with_name("one.jsonl.part").write_bytes(FILES["data/one.jsonl"][:100])
    assert fetch(sets, server) == 0
    assert Server.asked == ["bytes=100-", None] and all(got(sets, name).read_bytes() == data for name, data in FILES.items())
    assert fetch(sets, server) == 0 and len(Server.asked) == 2                          # what is there and whole is not fetched again


def test_a_part_as_long_as_the_file_starts_over(sets, server):
    got(sets).parent.mkdir(parents=True)
    got(sets).with_name("one.jsonl.part").write_bytes(b"x" * 2000)
    assert fetch(sets, server) == 0 and got(sets).read_bytes() == FILES["data/one.jsonl"]


def test_a_missing_file_does_not_stop_the_others_and_is_named(sets, server):
    (sets / "mirror/owner/name/commit/data/one.jsonl").unlink()
    refused(lambda: fetch(sets, server), "one.jsonl", "404", "1 of 2 files failed", "run it again")
    assert got(sets, "data/two words.jsonl").exists() and not got(sets).exists()


def test_two_sets_of_one_address_are_both_fetched(sets):
    b = (sets / "b.toml").read_text()
    one, two = (re.search(f'"{name}" = .*\n', b)[0] for name in FILES)
    (sets / "a.toml").write_text((sets / "a.toml").read_text().replace(two, ""))
    (sets / "b.toml").write_text(b.replace(one, ""))
    (sets / "m.toml").write_text('[train]\ntasks = ["a.toml"]\n[eval.new_domain]\ntasks = ["b.toml"]\n')
    assert fetch(sets, sets / "mirror") == 0 and all(got(sets, name).exists() for name in FILES)


def test_a_set_without_a_licence_is_fetched_only_when_asked(sets):
    for name in ("a", "b"):
        (sets / f"{name}.toml").write_text((sets / f"{name}.toml").read_text().replace('"MIT"', '"none found"'))
    refused(lambda: fetch(sets, sets / "mirror"), "no licence", "--unlicensed", "a")
    assert not (sets / "got").exists()
    assert fetch(sets, sets / "mirror", unlicensed=True) == 0 and got(sets).exists()
