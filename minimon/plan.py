"""What a run trains on, step by step: phases of classification and instruction following, their groups and their learning rates.

`settings` are train.py's.
"""

import math

from minimon.batch import Group, training_order
from minimon.instruct import Conversation, load_conversations
from minimon.tasks import Mixture


def instruction_plan(settings, mixture: Mixture) -> tuple[list[tuple[int, float, float]], list[Conversation]]:
    """-> phases [(steps, peak learning rate, share of rows that are conversations)], conversations."""
    given = mixture.instruct
    schedule = settings.instruct or (given.schedule if given else "none")
    if schedule == "none":
        return [(settings.steps, settings.lr, 0.0)], []
    if not given:
        raise ValueError(f"--instruct {schedule}: expected instruction data in {mixture.path}, got no table [instruct]; "
                         'add one with rows = "FILE.jsonl", a line {"messages": [...]} each')
    new = {task.prompt for split, groups in mixture.splits.items() if split != "trained" for tasks in groups.values() for task in tasks}
    conversations = load_conversations(given.path, new)
    fraction = settings.instruct_fraction or given.fraction
    return {"joint": [(settings.steps, settings.lr, fraction)], "only": [(settings.steps, settings.lr, 1.0)],
            "after": [(settings.steps, settings.lr, 0.0), (settings.instruct_steps, settings.instruct_lr, 1.0)]}[schedule], conversations


def training_steps(settings, mixture: Mixture, rows: dict, phases, conversations) -> list[tuple[list[Group], float]]:
    """(groups, learning rate) of each step. rows: of each training task."""
    plan = []
    for steps, lr, fraction in phases:
        order = training_order(mixture, rows, conversations, settings.seed, steps, settings.batch_size, settings.group_size, fraction)
        plan += [(groups, lr * lr_factor(i, steps, settings)) for i, groups in enumerate(order)]
    return plan


def lr_factor(step: int, steps: int, settings) -> float:
    """Of a phase's peak learning rate: linear warm-up, then linear or cosine decay to zero after its last step."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(steps - settings.warmup, 1)
    return 1 - done if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
