"""Whether a busy machine is why steps are slow."""

import os

import torch

SLOW = 3.0  # times what the fastest step took a token
LONG = 1.0  # seconds; nobody waits for shorter steps
BUSY = 1.5  # processes that want to run, a core


class LoadWatch:
    """Looks at the time of each step; where steps have become slow on a busy machine it says so, once."""

    def __init__(self):
        self.fastest = float("inf")
        self.has_spoken = False

    def line(self, seconds: float, tokens: int) -> str | None:
        """After a step of so many tokens: a line for a person, or None."""
        a_token = seconds / max(tokens, 1)
        self.fastest = min(self.fastest, a_token)
        if self.has_spoken or seconds < LONG or a_token < SLOW * self.fastest:
            return None
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
        if load < BUSY * cores:
            return None
        self.has_spoken = True
        advice = ""
        if torch.get_num_threads() > 1:
            advice = "; if it stays so, OMP_NUM_THREADS=1 is faster: threads do not wait for each other then"
        return f"steps are slow since the machine is busy: load {load:.1f} on {cores} cores{advice}"
