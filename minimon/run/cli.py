"""Settings: a frozen dataclass <-> the command line, and a user's mistake as one line with exit code 2."""

import argparse
import dataclasses
import os
import resource
import signal
import sys
import types
import typing
from contextlib import contextmanager
from pathlib import Path

import torch

from minimon.run.processes import lost, speaks, stop

ROOT = Path(__file__).resolve().parent.parent.parent


def setting(default, help: str, choices=None):
    """A dataclass field that is a flag: its name with dashes (from_ is --from), its type from the annotation, None for off."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def parse(settings: type, argv: list[str] | None = None, description: str | None = None):
    """Command line -> an instance of the dataclass `settings`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter,
                                     allow_abbrev=False)
    types_of = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        flag, kind = "--" + field.name.rstrip("_").replace("_", "-"), types_of[field.name]
        if kind is bool:
            parser.add_argument(flag, dest=field.name, action="store_true", help=field.metadata["help"])
            continue
        if isinstance(kind, types.UnionType):
            kind = next(option for option in typing.get_args(kind) if option is not type(None))
        parser.add_argument(flag, dest=field.name, type=kind, default=field.default, choices=field.metadata["choices"],
                            help=field.metadata["help"])
    return settings(**vars(parser.parse_args(argv)))


@contextmanager
def one_line_errors():
    """What a user can cause ends in one line on stderr and exit code 2. MINIMON_TRACEBACK=1 shows where it was raised.

    Of several processes the first to fail says why. As in a shell 130 is for an interrupt, 143 for SIGTERM, 141 for a reader that went
    away."""
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())                 # what is left is flushed at exit
        raise SystemExit(141) from None
    except KeyboardInterrupt as error:
        if speaks():
            sys.stderr.write("\nstopped; to go on: the same command, with --resume where it has begun to write\n")
        raise SystemExit(128 + (error.args[0] if error.args else signal.SIGINT)) from None
    except (ValueError, OSError, RuntimeError) as error:
        gone = isinstance(error, RuntimeError)
        if os.environ.get("MINIMON_TRACEBACK") or gone and not lost(error):
            raise
        told = "another process of this run has ended; to go on from what is saved: the same command with --resume"
        if speaks():
            sys.stderr.write(f"error: {told if gone else one_line(error)}\n")
        raise SystemExit(2) from None
    finally:
        stop()


def one_line(error: Exception) -> str:
    """Of what somebody wrote into a file a message shows no more than a screen."""
    text = " ".join(str(error).split())
    return text if len(text) <= 1500 else f"{text[:1000]} [... {len(text) - 1500} characters ...] {text[-500:]}"


def shipped(path: str) -> str:
    """Paths are relative to where you are; what the repository ships under data/ is also found from elsewhere."""
    return str(ROOT / path) if path.startswith("data/") and not Path(path).exists() else path


def check_device(device: str) -> None:
    try:
        kind, index = torch.device(device).type, torch.device(device).index or 0
    except RuntimeError as error:
        raise ValueError(f"--device: expected cpu, cuda or cuda:N, got {device!r}") from error
    if kind == "cuda" and index >= torch.cuda.device_count():
        raise ValueError(f"--device: expected a CUDA device, got {device!r} where PyTorch sees {torch.cuda.device_count()}; "
                         "use --device cpu")


def stop_signals() -> list[int]:
    """A list that SIGINT and SIGTERM append to; the loops look at it where stopping is safe. A second signal does not wait for that."""
    received = []

    def stop(number, frame):
        if received:
            interrupt(number, frame)
        received.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return received


def interrupt(number, frame):
    raise KeyboardInterrupt(number)


def peak_memory_gb() -> float:
    """Of this process, on the CPU."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 30 if sys.platform == "darwin" else 2 ** 20), 2)
