"""A script in a process of its own, without the seconds that importing PyTorch takes: a fork of this one, which has imported it."""

import os
import runpy
import signal
import sys
import tempfile
import threading
import time

from conftest import ROOT
from tqdm import tqdm

LIMIT = 300  # seconds


def ended(*words, **environment) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `python WORDS`: see Script."""
    script = Script(words, **environment)
    out, error = script.communicate()
    return script.returncode, out, error


class Script:
    """`python WORDS`, a script or -m and a module, from the project's root; environment: what is set for it. It is used as a
    subprocess.Popen in text mode is."""

    def __init__(self, words, **environment):
        self.words, self.returncode = list(map(str, words)), None
        self.files = [tempfile.TemporaryFile() for _ in range(2)]  # standard output, standard error
        self.pid = os.fork()
        if self.pid == 0:
            self.run(environment)

    def run(self, environment) -> None:
        code = 1
        try:
            for number, file in enumerate(self.files, start=1):
                os.dup2(file.fileno(), number)
            sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
            os.environ.update({name: str(value) for name, value in environment.items()})
            os.chdir(ROOT)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            tqdm.set_lock(
                threading.RLock()
            )  # its own is shared by all forks, and one that is killed may hold it
            if self.words[0] == "-m":
                sys.argv = self.words[1:]
                runpy.run_module(self.words[1], run_name="__main__", alter_sys=True)
            else:
                sys.argv = self.words
                runpy.run_path(str(ROOT / self.words[0]), run_name="__main__")
            code = 0
        except SystemExit as exit:
            code = exit.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def communicate(self) -> list[str]:
        """What it wrote, once it has ended."""
        started = time.monotonic()
        while self.poll() is None:
            if time.monotonic() - started > LIMIT:
                self.kill()
                raise TimeoutError(f"{self.words}: still at work after {LIMIT} seconds")
            time.sleep(0.01)
        for file in self.files:
            file.seek(0)
        return [file.read().decode() for file in self.files]
