"""A minimon monitor as an Inspect scorer (the extra `inspect`: inspect_ai).

    inspect score log.eval --scorer minimon/serve/inspect_scorer.py@minimon_scorer -S run=runs/mine -S task=my.toml

The value is P of the task's first label for the sample's transcript as a monitor may see it, nan where there is no assistant
message; log-odds and decision are in the score's metadata.
"""

from anyio import to_thread
from inspect_ai.model import ChatMessageAssistant
from inspect_ai.scorer import Score, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState

from minimon.formats.inspect_log import monitor_view
from minimon.serve.monitor import Monitor


@scorer(metrics=[mean(), stderr()])
def minimon_scorer(run: str, task: str, device: str = "cpu"):
    """run: directory of the adapter; task: FILE or FILE#NAME; device: cpu, cuda or cuda:N."""
    trained = Monitor.load(run, task=task, device=device)

    async def score(state: TaskState, target: Target) -> Score:
        if not any(isinstance(message, ChatMessageAssistant) for message in state.messages):
            return Score(value=float("nan"), explanation="no assistant message")
        turns = [message.model_dump(mode="json", exclude_none=True) for message in state.messages]
        scored = await to_thread.run_sync(trained.score, [monitor_view(turns)])
        decision = None if scored.decision is None else bool(scored.decision[0])
        metadata = {"log_odds": float(scored.log_odds[0]), "decision": decision, "task": trained.task.name}
        return Score(value=float(scored.P[0]), answer=str(decision), metadata=metadata)

    return score
