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

from minimon.distributed import lost, speaks, stop

ROOT = Path(__file__).resolve().parent.parent


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

    Of several processes the first to fail says why. As in a shell 130 is for an interrupt, 141 for a reader that went away."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())                 # what is left is flushed at exit
        raise SystemExit(141) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("MINIMON_TRACEBACK") or isinstance(error, RuntimeError) and not lost(error):
            raise
        message = " ".join(str(error).split())
        if isinstance(error, RuntimeError):
            message = "another process of this run has ended; to go on from what is saved: the same command with --resume"
        if speaks():
            sys.stderr.write(f"error: {message}\n")
        raise SystemExit(2) from None
    finally:
        stop()


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
    """A list that SIGINT and SIGTERM append to; the loops look at it where stopping is safe."""
    received = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: received.append(number))
    return received


def peak_memory_gb() -> float:
    """Of this process, on the CPU."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 30 if sys.platform == "darwin" else 2 ** 20), 2)
