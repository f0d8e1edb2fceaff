"""Processes that a script starts and that do not outlive it, however it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

# The child asks Linux for SIGTERM at its parent's death, looks whether it still lives, becomes the command.
LAUNCHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(143)
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Children:
    """`with Children() as children:` what `run` started has ended when the block has, by SIGTERM where it is
    left by an error.

    `run` may be called from several threads. On Linux a child ends with its parent even where that is
    killed."""

    def __init__(self):
        self.processes = []
        self.is_closed = False

    def __enter__(self):
        return self

    def __exit__(self, *error):
        """SIGTERM to all, with which a run of train.py saves its state; then they are waited for."""
        self.is_closed = True
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()

    def run(self, command: list[str], log, env: dict[str, str] | None = None) -> int:
        """The exit code of a command, negative for a signal; all its output goes into the file `log`. env:
        beside this one's."""
        if self.is_closed:
            return -signal.SIGTERM
        with open(log, "w", encoding="utf-8") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", LAUNCHER, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
            )
        self.processes.append(process)
        if self.is_closed:  # meanwhile
            process.terminate()
        return process.wait()


def last_line(log) -> str:
    """Of a child's output: where it failed, what it says is wrong."""
    text = Path(log).read_text(encoding="utf-8", errors="replace")
    return text.strip().rpartition("\n")[2].strip() or "no output"
