"""Few-shot prompting of any mixture: prompts that show labelled rows of their own task."""

import random
from dataclasses import replace

from minimon.tasks import Mixture, Row, Task

CHARS = 1000  # of a text that are shown


def with_examples(mixture: Mixture, count: int) -> Mixture:
    """Each evaluation task's prompt followed by `count` of its labelled rows that are not evaluated on, the
    labels in turn. Raises ValueError for a task that has too few."""
    splits = {}
    for split, groups in mixture.splits.items():
        splits[split] = {}
        for group, tasks in groups.items():
            splits[split][group] = []
            for task in tasks:
                tested = {row.text for row in mixture.test_rows(task, split)}
                rest = [row for row in task.rows if row.text not in tested]
                splits[split][group].append(showing(task, rest, count))
    return replace(mixture, splits=splits)


def showing(task: Task, rows: list[Row], count: int) -> Task:
    """The task with `count` of these rows in its prompt, labelled with its own words, the labels in turn."""
    rng, names, examples = random.Random(f"shots-{task.name}"), list(task.labels), []
    rest = rng.sample(rows, len(rows))
    for i in range(count):
        label = i % len(names)
        pool = [row for row in rest if row.label == label]
        if not pool:
            raise ValueError(
                f"--shots: task {task.name!r} has too few rows of {names[label]!r} beside its test rows"
            )
        rest.remove(pool[0])
        examples.append(pool[0])
    rng.shuffle(examples)
    parts = [task.prompt, "Examples:"]
    for row in examples:
        parts.append(f"Text: {row.text[:CHARS]}\nAnswer: {names[row.label]}")
    return replace(task, prompt="\n\n".join(parts))
