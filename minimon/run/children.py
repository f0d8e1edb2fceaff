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
        self.stop()

    def run(self, command: list[str], log, env: dict[str, str] | None = None) -> int:
        """The exit code of a command, negative for a signal; all its output goes into the file `log`. env:
        beside this one's."""
        if self.is_closed:
            return -signal.SIGTERM
        launcher = [sys.executable, "-c", LAUNCHER, str(os.getpid())]
        with open(log, "w", encoding="utf-8") as output:
            process = subprocess.Popen(
                [*launcher, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
            )
        self.processes.append(process)
        if self.is_closed:  # meanwhile
            process.terminate()
        code = process.wait()
        self.processes.remove(process)
        return code

    def stop(self) -> None:
        """SIGTERM to all, with which a run of train.py saves its state; then they are waited for."""
        self.is_closed = True
        running = list(self.processes)
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def last_line(log) -> str:
    """Of a child's output: where it failed, what it says is wrong."""
    lines = Path(log).read_text(encoding="utf-8", errors="replace").split("\n")
    written = [line.strip() for line in lines if line.strip()]
    return written[-1] if written else "no output"
