"""Settings: a frozen dataclass <-> the command line; progress bars; signals; a user's mistake as one line
with exit code 2."""

import argparse
import os
import re
import resource
import signal
import sys
import typing
from contextlib import contextmanager
from dataclasses import field, fields
from pathlib import Path

import torch
from tqdm import tqdm

from minimon import files
from minimon.run.processes import is_lost_process, leave, rank, say_once

LONGEST = 1500  # characters of an error message: what a user wrote into a file may be longer


# ---- settings -----------------------------------------------------------------------------------------


def setting(default, help: str, among=None):
    """A dataclass field that is a flag: its name with dashes, its type from the annotation; None means off.

    among: the words to choose from, or an interval of numbers as "(0, 1]", see check_numbers."""
    return field(default=default, metadata={"help": help, "among": among})


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


class OneLineParser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"error: {one_line(message)}; --help lists what there is\n")


def parse(settings: type, argv: list[str] | None = None, description: str | None = None):
    """Command line -> an instance of the dataclass `settings`."""
    parser = OneLineParser(prog=program(), description=description, allow_abbrev=False)
    kinds = typing.get_type_hints(settings)
    for option in fields(settings):
        kind, among, help = kinds[option.name], option.metadata["among"], option.metadata["help"]
        if kind is bool:
            parser.add_argument(flag(option.name), action="store_true", help=help)
            continue
        parser.add_argument(
            flag(option.name),
            type=next(iter(typing.get_args(kind)), kind),  # of int | None: int
            default=option.default,
            choices=None if isinstance(among, str) else among,
            help=help if option.default is None else f"{help} (default: {option.default})",
        )
    return settings(**vars(parser.parse_args(argv)))


def program() -> str | None:
    """What help calls a module that is run with -m; None for a script, which goes by its name."""
    spec = sys.modules["__main__"].__spec__
    return f"python -m {spec.parent}" if spec and spec.name.endswith(".__main__") else None


def check_numbers(settings) -> None:
    """Raises ValueError naming the flag of a number outside of its interval."""
    for option in fields(settings):
        value, interval = getattr(settings, option.name), option.metadata["among"]
        if value is None or not isinstance(interval, str):
            continue
        low, high = map(float, interval[1:-1].split(","))
        is_end = (value == low and interval[0] == "[") or (value == high and interval[-1] == "]")
        if not low < value < high and not is_end:
            raise ValueError(f"{flag(option.name)}: expected a number in {interval}, got {value:g}")


def check_device(device: str) -> None:
    """Raises ValueError for a device that is not there, or on which nothing here was ever tried (mps, xpu,
    meta ...)."""
    match = re.fullmatch("cpu|cuda(?::([0-9]+))?", device)
    if not match:
        raise ValueError(f"--device: expected cpu, cuda or cuda:N, got {device!r}, which is not supported")
    count = torch.cuda.device_count()
    if device != "cpu" and int(match[1] or 0) >= count:
        raise ValueError(
            f"--device: expected a CUDA device, got {device!r} where PyTorch sees {count}; use --device cpu"
        )


def check_output(path, overwrite: bool, flag: str = "--out") -> None:
    """Raises ValueError where `path` is a file or a directory that holds something, and --overwrite is not
    given."""
    path = Path(path)
    holds_something = any(path.iterdir()) if path.is_dir() else path.exists()
    if holds_something and not overwrite:
        raise ValueError(
            f"{flag}: {path} is already there; name another, or give --overwrite to replace what it holds"
        )


# ---- while a script is at work ------------------------------------------------------------------------


def progress(total: int | None, initial: int, name: str, unit: str):
    """A bar on stderr, drawn by the first process alone; standard output is for what is piped on."""
    return tqdm(total=total, initial=initial, desc=name, unit=unit, mininterval=0.5, disable=rank() > 0)


def peak_memory_gb(device: str = "cpu") -> float:
    """The most memory in use so far, in GiB: what PyTorch took of a CUDA device, or what this process took of
    the host."""
    if device.startswith("cuda"):
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, kilobytes elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 2)


# ---- how a script ends --------------------------------------------------------------------------------


@contextmanager
def one_line_errors(to_go_on: str = "the same command"):
    """What a user can cause ends in one line on stderr and exit code 2. MINIMON_TRACEBACK=1 shows where it
    was raised.

    As in a shell the code is 130 after an interrupt, 143 after SIGTERM, 141 where the reader of a pipe went
    away. Of several processes only the first to fail writes the line. to_go_on: what to type after an
    interrupt."""
    RECEIVED.clear()
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes the rest at exit
        raise SystemExit(141) from None
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        say_once(f"\nstopped; to go on: {to_go_on}\n")
        raise SystemExit(128 + number) from None
    except (ValueError, OSError, RuntimeError) as error:
        is_lost = is_lost_process(error)
        is_full = isinstance(error, torch.OutOfMemoryError)
        is_bug = isinstance(error, RuntimeError) and not (is_lost or is_full)
        if is_bug or os.environ.get("MINIMON_TRACEBACK"):
            raise
        said = one_line(error)
        if is_lost:
            said = f"another process of this run has ended; to go on from what is saved: {to_go_on}"
        elif is_full:
            advice = (
                "a lower --batch-tokens or --max-tokens, --dtype bfloat16, or --shard over several devices"
            )
            said = f"out of memory: {said[:200]}; give {advice}"
        say_once(f"error: {said}\n")
        raise SystemExit(2) from None
    finally:
        RECEIVED.clear()
        leave()


def one_line(error) -> str:
    text = files.one_line(error)
    if len(text) <= LONGEST:
        return text
    return f"{text[:1000]} [... {len(text) - LONGEST} characters ...] {text[-500:]}"


RECEIVED: list[int] = []  # signals that raised; a package that is just being imported may swallow that


def interrupt(number, frame):
    RECEIVED.append(number)
    raise KeyboardInterrupt(number)


class StopSignals:
    """SIGINT and SIGTERM wait for the end of a step: within `with StopSignals() as stop:` a loop asks `if
    stop:`.

    The signal is answered at once with a line that says so; a second one does not wait and raises
    KeyboardInterrupt there, as any signal does outside of the block."""

    def __enter__(self):
        self.number = RECEIVED[-1] if RECEIVED else None  # one that was swallowed: stop after a step
        self.before = {
            number: signal.signal(number, self.receive) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)
        RECEIVED.clear()

    def __bool__(self):
        return self.number is not None

    def receive(self, number, frame):
        if self:
            interrupt(number, frame)
        self.number = number
        if rank() == 0:
            line = "\nstopping after this step, which is then saved; a second signal does not wait\n"
            os.write(2, line.encode())  # a handler may come amid another write to sys.stderr

    def leave(self):
        """Ends the script, its state saved. Where the signal came to another process alone, as after
        SIGTERM."""
        raise KeyboardInterrupt(self.number or signal.SIGTERM)
