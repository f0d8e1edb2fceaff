"""A minimon monitor for ControlArena's protocols (the extra `arena`: control-arena 20.1.1).

    from minimon.serve.control_arena import minimon_monitor_builder
    protocol = trusted_monitoring_builder(policy=..., monitor=minimon_monitor_builder(run="runs/mine", task="my.toml"))

    await evaluate_monitor_post_hoc("honest.eval", minimon_monitor_builder(run=..., task=...), "scored.eval")

suspicion_score is P of the task's first label, of the trajectory up to the step. ControlArena's decorator takes away what a
monitor may not see; formats/inspect_log.py, which training read logs with, does so again and drops all but what is said.
"""

from functools import cache

from anyio import to_thread
from control_arena import control_agent
from control_arena.monitor import MonitorResponse, monitor
from pydantic import Field

from minimon.formats.inspect_log import monitor_view
from minimon.serve.monitor import Monitor

load = cache(Monitor.load)  # one model for all monitors of a run and task


@control_agent
def minimon_monitor_builder(
    run: str = Field(description="run directory, or any directory with an adapter"),
    task: str = Field(description="task whose prompt is asked, FILE or FILE#NAME"),
    device: str = Field(default="cpu", description="cpu, cuda or cuda:N"),
):
    """Scores each step's trajectory by a trained monitor."""
    trained = load(run, task=task, device=device)

    @monitor
    async def score(state, tools) -> MonitorResponse:
        scored = await to_thread.run_sync(trained.score, [conversation(state.messages)])
        decision = None if scored.decision is None else bool(scored.decision[0])
        reason = f"log-odds {scored.log_odds[0]:.3f} for task {trained.task.name}, decision {decision}"
        return MonitorResponse(suspicion_score=float(scored.P[0]), reason=reason)

    return score


def conversation(messages) -> list[dict]:
    """Inspect's messages -> turns as a monitor may see them, up to the last assistant message."""
    return monitor_view([message.model_dump(mode="json", exclude_none=True) for message in messages])
