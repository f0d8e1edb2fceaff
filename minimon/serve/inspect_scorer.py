"""A minimon monitor as an Inspect scorer (the extra `inspect`: inspect_ai).

    inspect score attack.eval --scorer minimon/serve/inspect_scorer.py -S run=runs/mine -S task=my-task.toml

The value is P of the task's first label for the sample's transcript as a monitor may see it, nan where there
is no assistant message; log-odds and decision are in the score's metadata.
"""

from anyio import to_thread
from inspect_ai.scorer import Score, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState

from minimon.formats.inspect_log import monitor_view
from minimon.serve.monitor import Monitor


@scorer(metrics=[mean(), stderr()])
def minimon_scorer(run: str, task: str, device: str = "cpu"):
    """run: directory of the adapter; task: FILE or FILE#NAME; device: cpu, cuda or cuda:N."""
    monitor = Monitor.load(run, task=task, device=device)

    async def score(state: TaskState, target: Target) -> Score:
        turns = turns_of(state.messages)
        if not turns:
            return Score(value=float("nan"), explanation="no assistant message")
        scored = await to_thread.run_sync(monitor.score, [turns])
        line = scored.line(0)
        metadata = {
            "log_odds": line["log_odds"],
            "decision": line["decision"],
            "task": monitor.task.name,
        }
        return Score(value=line["P"], answer=str(line["decision"]), metadata=metadata)

    return score


def turns_of(messages) -> list[dict]:
    """Inspect's messages -> turns as a monitor may see them, up to the last assistant message."""
    return monitor_view([message.model_dump(mode="json", exclude_none=True) for message in messages])
