"""Task and mixture files: what is read, and what is refused, by name and line."""

import itertools
import json
import random

import pytest

from minimon.batch import common_prefix, labels_in_turn, pack, row_groups, token_batches, training_order
from minimon.report.leakage import bare
from minimon.tasks import SPLITS, Conversation, Row, load_mixture, load_task, load_tasks, normal

TASK = """
name = "{name}"
domain = "{domain}"
prompt = "{prompt}"
rows = "{rows}"
text = "text"
label = "labels.leak"
labels = {{ Yes = [true], No = [false] }}
split = "split"
"""


def write_rows(path, train=8, test=6, tag=""):
    rows = [
        {
            "text": f"{tag} text number {i} " + "word " * (i % 5),
            "labels": {"leak": i % 2 == 0},
            "split": "train" if i < train else "test",
        }
        for i in range(train + test)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_task(folder, name, prompt=None, rows=None, domain="shell"):
    rows = rows or f"{name}.jsonl"
    if not (folder / rows).exists():
        write_rows(folder / rows, tag=rows)
    (folder / f"{name}.toml").write_text(
        TASK.format(name=name, domain=domain, prompt=prompt or f"Is it {name}?", rows=rows)
    )


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "new"):
        write_task(tmp_path, name)
    (tmp_path / "mixture.toml").write_text(
        '[train]\ntasks = ["a.toml", "b.toml"]\ncap = 6\n[eval]\nrows = 4\n'
        '[eval.trained]\ntasks = ["a.toml"]\n[eval.new_domain]\nfar = ["new.toml"]\n'
    )
    return tmp_path


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def refused(call, *words):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


# ---- tasks ---------------------------------------------------------------------------------------


def test_a_task_reads_its_rows_with_labels_in_order_and_lines(folder):
    task = load_task(folder / "a.toml")
    assert list(task.labels) == ["Yes", "No"] and len(task.rows) == 14
    assert [row.label for row in task.rows[:4]] == [0, 1, 0, 1] and task.rows[3].where.endswith("a.jsonl:4")
    assert {row.side for row in task.rows} == {"train", "test"}


@pytest.mark.parametrize(
    "suffix, text",
    [
        ("csv", 'text,label\n"one, two",1\nthree,0\n'),
        ("tsv", "text\tlabel\none, two\t1\nthree\t0\n"),
        ("json", '[{"text": "one, two", "label": "1"}, {"text": "three", "label": "0"}]'),
        ("jsonl", '\ufeff{"text": "one, two", "label": "1"}\r\n\n{"text": "three", "label": "0"}\n'),
    ],
)
def test_rows_are_read_in_the_format_they_came_in(tmp_path, suffix, text):
    (tmp_path / f"rows.{suffix}").write_text(text, newline="")
    (tmp_path / "t.toml").write_text(
        TASK.format(name="t", domain="d", prompt="p", rows=f"rows.{suffix}")
        .replace("labels.leak", "label")
        .replace("[true]", '["1"]')
        .replace("[false]", '["0"]')
        .replace('split = "split"', "")
    )
    assert [(row.text, row.label) for row in load_task(tmp_path / "t.toml").rows] == [
        ("one, two", 0),
        ("three", 1),
    ]


def test_many_tasks_of_a_file_are_told_apart_by_name(tmp_path):
    write_rows(tmp_path / "r.jsonl")
    (tmp_path / "t.toml").write_text(
        "".join("[[task]]" + TASK.format(name=n, domain="d", prompt=n, rows="r.jsonl") for n in "xy")
    )
    assert [task.name for task in load_tasks(tmp_path / "t.toml")] == ["x", "y"] and load_task(
        tmp_path / "t.toml", "y"
    ).prompt == "y"
    refused(lambda: load_task(tmp_path / "t.toml"), "expected one task", "got 2")


def test_rows_of_a_skipped_value_are_left_out_and_others_must_be_mapped(folder):
    edit(folder / "a.jsonl", '"leak": true', '"leak": "unclear"')
    refused(lambda: load_task(folder / "a.toml").rows, "a.jsonl:1", "'unclear'", "skip")
    edit(folder / "a.toml", 'split = "split"', 'split = "split"\nskip = ["unclear"]')
    assert len(load_task(folder / "a.toml").rows) == 13


def test_one_is_not_true(folder):
    edit(folder / "a.jsonl", '"leak": true', '"leak": 1')
    refused(lambda: load_task(folder / "a.toml").rows, "a.jsonl:1", "got 1")


def test_a_hashed_split_keeps_equal_texts_on_one_side_and_its_fractions(tmp_path):
    rows = [{"text": f"text {i % 400}", "labels": {"leak": bool(i % 2)}} for i in range(800)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "t.toml").write_text(
        TASK.format(name="t", domain="d", prompt="p", rows="r.jsonl").replace(
            'split = "split"', "split = { train = 0.5, validation = 0.2, test = 0.3 }"
        )
    )
    sides = [row.side for row in load_task(tmp_path / "t.toml").rows]
    assert 0.4 < sides.count("train") / 800 < 0.6 and 0.1 < sides.count("validation") / 800 < 0.3
    assert sides[:400] == sides[400:]


def test_selection_is_balanced_capped_and_a_function_of_the_seed(folder):
    task = load_task(folder / "a.toml")
    rows = task.select("train", 6, balance=True, seed=1)
    assert [sum(row.label == label for row in rows) for label in (0, 1)] == [3, 3]
    assert (
        rows == task.select("train", 6, balance=True, seed=1) != task.select("train", 6, balance=True, seed=2)
    )
    assert len(task.select("train", None, balance=False, seed=1)) == 8


@pytest.mark.parametrize(
    "old, new, words",
    [
        ('name = "a"', "name = 3", ["name", "3"]),
        ('prompt = "Is it a?"', "", ["prompt"]),
        ("{ Yes = [true], No = [false] }", "{ Yes = [true] }", ["labels"]),
        ("No = [false]", "No = [true]", ["same value"]),
        ('split = "split"', "split = { train = 0.5 }", ["add up to 1"]),
        ('domain = "shell"', 'domain = "shell"\ncolour = 1', ["colour: unknown key"]),
        ('name = "a"', 'name = "a', ["line"]),
    ],
)
def test_a_malformed_task_is_refused(folder, old, new, words):
    edit(folder / "a.toml", old, new)
    refused(lambda: load_task(folder / "a.toml"), "a.toml", *words)


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"text": "x"', ["a.jsonl:3", "JSON"]),
        ("[1]", ["a.jsonl:3", "list"]),
        ('{"text": "x", "split": "train"}', ["a.jsonl:3", "labels.leak"]),
        ('{"text": 5, "labels": {"leak": true}, "split": "train"}', ["a.jsonl:3", "text"]),
        ("[" * 100_000, ["a.jsonl:3", "deeply"]),
        ('{"text": "x", "labels": {"leak": true}, "split": "dev"}', ["a.jsonl:3", "'dev'"]),
    ],
)
def test_a_malformed_row_is_refused_with_file_and_line(folder, line, words):
    lines = (folder / "a.jsonl").read_text().splitlines()
    (folder / "a.jsonl").write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    refused(lambda: load_task(folder / "a.toml").rows, *words)


def test_text_that_is_not_utf8_and_a_short_csv_line_are_refused(folder, tmp_path):
    (folder / "a.jsonl").write_bytes(b'{"text": "\xff"}\n')
    refused(lambda: load_task(folder / "a.toml").rows, "a.jsonl", "UTF-8", "0xff")
    (tmp_path / "rows.csv").write_text("text,label\nx,1\ny\n")
    edit(folder / "b.toml", "b.jsonl", "rows.csv")
    refused(lambda: load_task(folder / "b.toml").rows, "rows.csv:3", "expected 2 fields")


# ---- mixtures ------------------------------------------------------------------------------------


def test_a_mixture_holds_its_tasks_in_splits_and_groups(folder):
    mixture = load_mixture(folder / "mixture.toml")
    assert [task.name for task in mixture.train] == ["a", "b"] and mixture.cap == 6
    assert {
        split: {group: [task.name for task in tasks] for group, tasks in groups.items()}
        for split, groups in mixture.splits.items()
    } == {"trained": {"": ["a"]}, "new_domain": {"far": ["new"]}}
    assert len(mixture.test_rows(mixture.train[0])) == 4


def test_wildcards_name_many_tasks(folder):
    edit(folder / "mixture.toml", '["a.toml", "b.toml"]', '["[ab].toml"]'.replace("[ab]", "?"))
    assert [task.name for task in load_mixture(folder / "mixture.toml").train] == ["a", "b"]


@pytest.mark.parametrize("prompt", ["Is it a?", "  is IT  a? "])
def test_an_evaluation_prompt_that_was_trained_on_is_refused(folder, prompt):
    edit(folder / "new.toml", "Is it new?", prompt)
    refused(
        lambda: load_mixture(folder / "mixture.toml"), "new_domain", "prompt of 'new' was trained on", "'a'"
    )


def test_a_test_row_that_was_trained_on_is_refused(folder):
    row = json.loads((folder / "a.jsonl").read_text().splitlines()[0]) | {"split": "test"}
    (folder / "new.jsonl").write_text(
        "".join(
            json.dumps(row | {"labels": {"leak": leak}, "text": row["text"] + " x" * leak}) + "\n"
            for leak in (True, False)
        )
    )
    refused(lambda: load_mixture(folder / "mixture.toml"), "new.jsonl:2", "also a training row", "a.jsonl:1")


def test_a_text_in_both_train_and_test_of_a_task_is_refused(folder):
    first = (folder / "a.jsonl").read_text().splitlines()[0]
    with open(folder / "a.jsonl", "a") as file:
        file.write(first.replace('"train"', '"test"') + "\n")
    refused(
        lambda: load_mixture(folder / "mixture.toml"),
        "a.jsonl:15",
        "a.jsonl:1",
        "both" if False else "one side",
    )


@pytest.mark.parametrize(
    "side, words",
    [
        ("train", ["task 'a' has no train row of label Yes"]),
        ("test", ["task 'a' has no test row of label Yes"]),
    ],
)
def test_an_empty_class_is_refused_by_name(folder, side, words):
    rows = [json.loads(line) for line in (folder / "a.jsonl").read_text().splitlines()]
    (folder / "a.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows if row["split"] != side or not row["labels"]["leak"])
    )
    refused(lambda: load_mixture(folder / "mixture.toml"), *words)


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("cap = 6", "cap = 1", ["train.cap"]),
        ("cap = 6", "caps = 6", ["train.caps"]),
        ('"b.toml"', '"c.toml"', ["c.toml"]),
        ('"b.toml"', '"a.toml"', ["'a'", "twice"]),
        ("cap = 6", "weights = { c = 1 }", ["'c'"]),
        ("cap = 6", "weights = { a = -1 }", ["'a'", "-1"]),
        ("[eval.new_domain]", "[eval.new_things]", ["eval.new_things"]),
        ('far = ["new.toml"]', "far = []", ["eval.new_domain.far"]),
        ('["a.toml"]', '["new.toml"]', ["trained", "'new'", "not trained on"]),
        ('"b.toml"', '"b.toml#z"', ["b.toml#z"]),
    ],
)
def test_a_malformed_mixture_is_refused(folder, old, new, words):
    edit(folder / "mixture.toml", old, new)
    refused(lambda: load_mixture(folder / "mixture.toml"), *words)


def test_missing_files_are_refused_by_name(folder):
    refused(lambda: load_mixture(folder / "none.toml"), "none.toml")
    (folder / "new.jsonl").unlink()
    refused(lambda: load_mixture(folder / "mixture.toml"), "new.jsonl")


# ---- batches and order ---------------------------------------------------------------------------


def test_the_prefix_is_the_longest_common_one_with_a_token_left_for_each_row():
    assert common_prefix([[1, 2, 3, 4], [1, 2, 5], [1, 2, 3]]) == 2
    assert (
        common_prefix([[1, 2], [1, 2, 3]]) == 1
        and common_prefix([[1, 2, 3]]) == 2
        and common_prefix([[1], [2]]) == 0
    )
    packed = pack([[[1, 2, 3, 4], [1, 2, 5], [1, 2, 3]]])
    assert packed.tokens.tolist() == [1, 2, 5, 3, 3, 4] and packed.order == [1, 2, 0]


def test_batches_are_sorted_by_length_and_bounded_in_tokens():
    lengths = [5, 50, 7, 6, 90, 5, 30]
    batches = token_batches(lengths, 40)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert all(len(batch) == 1 or sum(lengths[i] for i in batch) <= 40 for batch in batches)
    assert batches[0] == [0, 5, 3, 2] and [4] in batches


def order_of(mixture, seed, steps, batch_size, group_size, conversations=(), fraction=0.0):
    rows = {task.name: mixture.train_rows(task, seed) for task in mixture.train}
    sizes = {"steps": steps, "batch_size": batch_size, "group_size": group_size}
    return training_order(mixture, rows, list(conversations), seed=seed, fraction=fraction, **sizes)


def test_the_order_is_a_function_of_the_seed_with_the_batch_size_held(folder):
    mixture = load_mixture(folder / "mixture.toml")
    order = order_of(mixture, 3, 7, 10, 4)
    assert order == order_of(mixture, 3, 7, 10, 4) != order_of(mixture, 4, 7, 10, 4)
    assert order[:5] == order_of(mixture, 3, 5, 10, 4)
    assert all(sum(len(group.rows) for group in groups) == 10 for groups in order)
    assert all({row.side for row in group.rows} == {"train"} for groups in order for group in groups)


def test_tasks_come_in_proportion_to_their_weights(folder):
    edit(folder / "mixture.toml", "cap = 6", "cap = 6\nweights = { a = 3 }")
    order = order_of(load_mixture(folder / "mixture.toml"), 0, 40, 4, 2)
    names = [group.task.name for groups in order for group in groups]
    assert names.count("a") == 3 * names.count("b")


def test_an_epoch_shows_every_row_once(folder):
    order = order_of(load_mixture(folder / "mixture.toml"), 0, 6, 4, 2)
    seen = [row.where for groups in order for group in groups if group.task.name == "a" for row in group.rows]
    assert len(seen) == 12 and len(set(seen[:6])) == 6 and sorted(seen[:6]) == sorted(seen[6:])


def test_a_group_of_rows_holds_its_share_of_each_label():
    rng = random.Random(0)
    rows = [Row("x" * rng.randrange(100), int(i % 4 == 0), "train", f"f:{i}") for i in range(96)]
    groups = list(itertools.islice(row_groups("seed", rows, 8), 12))
    assert [sum(row.label for row in group) for group in groups] == [2] * 12
    assert {row.where for group in groups for row in group} == {row.where for row in rows}
    spread = [max(len(row.text) for row in group) - min(len(row.text) for row in group) for group in groups]
    assert sum(spread) / len(spread) < 50  # of rows alike in length, where chance would give 78


def test_labels_take_turns_in_the_order_that_their_rows_have():
    rows = [Row("x", label, "train", f"f:{i}") for i, label in enumerate([0, 0, 0, 1, 1, 0])]
    order = [rows.index(row) for row in labels_in_turn(rows)]
    assert order == [0, 3, 1, 2, 4, 5]
    talks = [Conversation(({"content": "x"},), f"f:{i}") for i in range(3)]
    assert labels_in_turn(talks) == talks and labels_in_turn([]) == []


def test_conversations_take_their_share_of_the_rows_and_fractions_are_carried_on(folder):
    mixture, talks = (
        load_mixture(folder / "mixture.toml"),
        [Conversation(({"content": "word " * i},), f"f:{i}") for i in range(5)],
    )
    order = order_of(mixture, 0, 8, 6, 4, talks, 0.25)
    talked = [sum(len(group.rows) for group in groups if group.task is None) for groups in order]
    assert talked == [1, 2, 1, 2, 1, 2, 1, 2] and all(
        sum(len(group.rows) for group in groups) == 6 for groups in order
    )
    seen = [row.where for groups in order for group in groups if group.task is None for row in group.rows]
    assert len(set(seen[:5])) == 5
    assert all(group.task is None for groups in order_of(mixture, 0, 3, 6, 4, talks, 1.0) for group in groups)


@pytest.mark.parametrize(
    "text, words",
    [
        (
            '[eval.thinking]\nprompt = "x"\ntasks = ["new.toml"]',
            ["eval.thinking.prompt", "expected a list of task files", "'x'"],
        ),
        (
            '[eval.thinking]\nmax_new_tokens = 0\ntasks = ["new.toml"]',
            ["eval.thinking.max_new_tokens", "got 0"],
        ),
        ("[eval.summary]\nrows = 2", ["eval.summary", "got neither"]),
        ("[instruct]\nrows = 3", ["instruct.rows: expected a text", "3"]),
        ('[instruct]\nrows = "t.jsonl"\nschedule = "later"', ["schedule", "'later'"]),
        ('[instruct]\nrows = "t.jsonl"\nfraction = 1.5', ["fraction in (0, 1)", "1.5"]),
    ],
)
def test_options_of_splits_and_instruction_data_are_checked(folder, text, words):
    (folder / "mixture.toml").write_text((folder / "mixture.toml").read_text() + text + "\n")
    refused(lambda: load_mixture(folder / "mixture.toml"), *words)


def test_a_split_may_have_its_own_number_of_rows_and_the_prompt_may_follow_the_text(folder):
    (folder / "mixture.toml").write_text(
        (folder / "mixture.toml").read_text() + '[eval.thinking]\nrows = 2\ntasks = ["new.toml"]\n'
    )
    edit(folder / "new.toml", 'text = "text"', 'text = "text"\nprompt_position = "after"')
    mixture = load_mixture(folder / "mixture.toml")
    (task,) = mixture.splits["thinking"][""]
    assert len(mixture.test_rows(task, "thinking")) == 2 and len(mixture.test_rows(task, "new_domain")) == 4
    assert mixture.options["thinking"].max_new_tokens == 1024 and task.prompt_position == "after"
    edit(folder / "new.toml", '"after"', '"behind"')
    refused(lambda: load_mixture(folder / "mixture.toml"), "prompt_position", "'behind'")


# ---- files of rows -------------------------------------------------------------------------------


def test_a_file_of_no_kind_that_is_read_is_refused(folder):
    (folder / "a.txt").write_text("a line\n")
    edit(folder / "a.toml", "a.jsonl", "a.txt")
    refused(lambda: load_task(folder / "a.toml").rows, "a.txt", ".jsonl, .json, .csv or .tsv", "'.txt'")


def test_a_pattern_stands_for_many_files_of_rows(folder):
    write_rows(folder / "part1.jsonl", tag="one")
    write_rows(folder / "part2.jsonl", tag="two")
    edit(folder / "a.toml", "a.jsonl", "part*.jsonl")
    task = load_task(folder / "a.toml")
    assert [path.name for path in task.files()] == ["part1.jsonl", "part2.jsonl"] and len(task.rows) == 28
    edit(folder / "a.toml", "part*.jsonl", "none*.jsonl")
    refused(
        lambda: load_task(folder / "a.toml").files(),
        "none*.jsonl",
        "expected a file of rows, which ",
        "a.toml asks for under rows, found none",
    )


def test_the_criterion_is_the_tasks_name_unless_it_is_given(folder):
    assert load_task(folder / "a.toml").criterion == "a"
    edit(folder / "a.toml", 'split = "split"', 'split = "split"\ncriterion = "leak"')
    assert load_task(folder / "a.toml").criterion == "leak"
    edit(folder / "a.toml", 'criterion = "leak"', 'criterion = " "')
    refused(lambda: load_task(folder / "a.toml"), "criterion: expected a text")


# ---- options that are gone -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "old, new, gone",
    [
        ('split = "split"', 'each = ["a", "b"]', "`each` is gone"),
        ('split = "split"', 'join = { field = "q", file = "q.csv", key = "n" }', "`join` is gone"),
        ('split = "split"', "keep = { k = [1] }", "`keep` is gone"),
        ('split = "split"', "drop = { k = [1] }", "`drop` is gone"),
        ('split = "split"', 'columns = ["a"]', "`columns` is gone"),
        ('split = "split"', 'format = "lines"', "`format` is gone"),
        ('split = "split"', '[source]\naddress = "https://x/y"', "`source` is gone"),
        ('"labels.leak"', '"@file"', "label = '@file' is gone"),
        ('"labels.leak"', '["S", "H"]', "label = ['S', 'H'] is gone"),
        ('text = "text"', 'text = "[user]\\n{question}"', "is gone, it names one field of a row"),
    ],
)
def test_an_option_that_is_gone_is_refused_with_what_replaces_it(folder, old, new, gone):
    edit(folder / "a.toml", old, new)
    refused(
        lambda: load_task(folder / "a.toml"),
        "a.toml: task 'a'",
        gone,
        "write plain rows once, see data/public.py",
    )


# ---- prompts that are the same -------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    [
        "Is it a",
        "Is it a .",
        "Is\u200b it a?",
        "I\u200bs it a?",
        "Is\u2060it\ufeffa?",
        "Ｉｓ ｉｔ ａ？",
        "IS IT A!",
        "Is\u00a0it\ta?",
        "«Is it a?»",
        "I\u00ads i\ufe0ft a?",
        "`Is it a?`",
    ],
)
def test_a_prompt_is_not_new_by_how_it_is_set(folder, prompt):
    (folder / "new.toml").write_text(
        (folder / "new.toml").read_text().replace("Is it new?", prompt), encoding="utf-8"
    )
    refused(lambda: load_mixture(folder / "mixture.toml"), "prompt of 'new' was trained on")


@pytest.mark.parametrize(
    "one, other",
    [
        ("क्या कि है", "क्या का है"),
        ("Is P > 0.5?", "Is P < 0.5?"),
        ("More than 3?", "More than 5?"),
        ("!", "?"),
        ("né", "ne"),
    ],
)
def test_prompts_of_other_letters_marks_numbers_or_symbols_are_others(one, other):
    assert normal(one) != normal(other)


def test_near_duplicates_differ_in_letters_or_their_marks_and_not_by_having_none():
    assert bare("12 + 5") != bare("13 + 5") and bare("😀") != bare("🔥")
    assert bare("कि") != bare("का") and bare("a 1") == bare("A, 2")


# ---- splits --------------------------------------------------------------------------------------


def same_prompt(folder, domain="web"):
    write_task(folder, "other", prompt="Is it a?", domain=domain)
    (folder / "mixture.toml").write_text(
        (folder / "mixture.toml").read_text() + '[eval.same_prompt]\ntasks = ["other.toml"]\n'
    )


def test_a_trained_prompt_may_be_asked_of_a_domain_that_is_new(folder):
    same_prompt(folder)
    mixture = load_mixture(folder / "mixture.toml")
    assert list(mixture.splits) == ["trained", "same_prompt", "new_domain"] and [
        task.name for task in mixture.split_tasks("same_prompt")
    ] == ["other"]
    assert SPLITS == ("trained", "same_prompt", "new_domain", "new_prompt", "thinking", "summary")
    edit(folder / "other.toml", "Is it a?", "Is it other?")
    refused(
        lambda: load_mixture(folder / "mixture.toml"), "same_prompt: the prompt of 'other' is not trained on"
    )


def test_a_domain_that_was_trained_on_belongs_in_trained_and_another_in_same_prompt(folder):
    same_prompt(folder, domain="shell")
    refused(
        lambda: load_mixture(folder / "mixture.toml"),
        "same_prompt: the domain of 'other', 'shell', was trained on",
        "eval.trained",
    )
    edit(folder / "mixture.toml", "[eval.trained]\ntasks = [", '[eval.trained]\ntasks = ["other.toml", ')
    edit(folder / "mixture.toml", '[eval.same_prompt]\ntasks = ["other.toml"]', "")
    load_mixture(folder / "mixture.toml")
    edit(folder / "other.toml", '"shell"', '"web"')
    refused(
        lambda: load_mixture(folder / "mixture.toml"),
        "trained: the domain of 'other', 'web', is not trained on",
        "eval.same_prompt",
    )


def test_a_text_that_was_trained_on_is_refused_under_the_same_prompt(folder):
    same_prompt(folder)
    rows = [json.loads(line) for line in (folder / "a.jsonl").read_text().splitlines()]
    (folder / "other.jsonl").write_text(
        "".join(json.dumps(row | {"split": "test"}) + "\n" for row in rows[:2])
    )
    refused(
        lambda: load_mixture(folder / "mixture.toml"),
        "same_prompt: test row",
        "other.jsonl",
        "is also a training row",
    )


@pytest.mark.parametrize(
    "text, words",
    [
        (
            "[eval.new_prompt]\nmax_new_tokens = 5\n",
            ["eval.new_prompt.max_new_tokens", "expected a list of task files", "5"],
        ),
        ('[eval.summary]\nprompt = " "\n', ["eval.summary.prompt", "expected a text"]),
    ],
)
def test_a_split_that_cannot_be_measured_as_asked_is_refused(folder, text, words):
    (folder / "mixture.toml").write_text(
        (folder / "mixture.toml").read_text() + text + 'tasks = ["new.toml"]\n'
    )
    refused(lambda: load_mixture(folder / "mixture.toml"), *words)


def test_a_thinking_split_without_test_rows_is_refused(folder):
    write_task(folder, "thought")
    write_rows(folder / "thought.jsonl", train=14, test=0)
    (folder / "mixture.toml").write_text(
        (folder / "mixture.toml").read_text() + '[eval.thinking]\ntasks = ["thought.toml"]\n'
    )
    refused(lambda: load_mixture(folder / "mixture.toml"), "task 'thought' has no test row")


# ---- what the command line may change ------------------------------------------------------------


def test_a_mixture_is_restricted_to_splits_and_numbers_of_rows(folder):
    (folder / "mixture.toml").write_text(
        (folder / "mixture.toml").read_text() + '[eval.thinking]\nrows = 2\ntasks = ["new.toml"]\n'
    )
    whole = load_mixture(folder / "mixture.toml")
    few = whole.restricted("new_domain, trained", eval_rows=2, cap=2)
    assert (
        list(few.splits) == list(few.options) == ["trained", "new_domain"]
        and len(few.train_rows(few.train[0], 0)) == 2
    )
    assert len(few.test_rows(few.train[0], "trained")) == len(few.test_rows(few.train[0])) == 2
    more = whole.restricted(eval_rows=6)
    assert [len(more.test_rows(more.train[0], split)) for split in ("trained", "thinking")] == [6, 2]
    assert whole.restricted() == whole and list(whole.splits) == ["trained", "new_domain", "thinking"]
    assert [task.name for task in few.all_tasks()] == ["a", "b", "a", "new"]


@pytest.mark.parametrize(
    "change, words",
    [
        (
            {"splits": "trained,new_prompt"},
            ["--splits", "expected some of trained, new_domain", "mixture.toml", "got 'new_prompt'"],
        ),
        ({"splits": "x, y"}, ["'x', 'y'"]),
        ({"eval_rows": 1}, ["--eval-rows", "from 2", "got 1"]),
        ({"cap": 0}, ["--cap", "got 0"]),
    ],
)
def test_what_a_mixture_cannot_be_restricted_to_is_refused(folder, change, words):
    refused(lambda: load_mixture(folder / "mixture.toml").restricted(**change), *words)


def test_validation_rows_are_those_of_that_side(folder):
    mixture = load_mixture(folder / "mixture.toml")
    assert mixture.validation_rows(mixture.train[0], 4) == []
    rows = [json.loads(line) for line in (folder / "a.jsonl").read_text().splitlines()]
    (folder / "a.jsonl").write_text(
        "".join(
            json.dumps(row | {"split": "validation" if i in (8, 9, 10, 13) else row["split"]}) + "\n"
            for i, row in enumerate(rows)
        )
    )
    mixture = load_mixture(folder / "mixture.toml")
    assert sorted(row.where.rpartition(":")[2] for row in mixture.validation_rows(mixture.train[0], 4)) == [
        "10",
        "11",
        "14",
        "9",
    ]
