"""A minimon monitor for ControlArena's protocols (the extra `arena`: control-arena 20.1.1).

    monitor = minimon_monitor_builder(run="runs/mine", task="my-task.toml")
    protocol = trusted_monitoring_builder(policy=my_policy(), monitor=monitor)  # live, at every step
    await evaluate_monitor_post_hoc("attack.eval", monitor, "scored.eval")          # over a saved log

suspicion_score is P of the task's first label for the trajectory up to the step. What a monitor may not see
is taken away by ControlArena's decorator, and again by formats/inspect_log.py, by which logs are trained on.
"""

from functools import cache

from anyio import to_thread
from control_arena import control_agent
from control_arena.monitor import MonitorResponse, monitor

from minimon.serve.inspect_scorer import turns_of
from minimon.serve.monitor import Monitor

load = cache(Monitor.load)  # one model for all monitors of a run and task


@control_agent
def minimon_monitor_builder(run: str, task: str, device: str = "cpu"):
    """Scores each step's trajectory by a trained monitor.

    run: directory of the adapter; task: FILE or FILE#NAME; device: cpu, cuda or cuda:N."""
    trained = load(run, task=task, device=device)

    @monitor
    async def score(state, tools) -> MonitorResponse:
        scored = await to_thread.run_sync(trained.score, [turns_of(state.messages)])
        line = scored.line(0)
        reason = f"log-odds {line['log_odds']:.3f} for task {trained.task.name}, decision {line['decision']}"
        return MonitorResponse(suspicion_score=line["P"], reason=reason)

    return score
