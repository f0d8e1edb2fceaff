"""A directory has one owner: a lock that the kernel lets go of when its process ends, however it ends."""

import fcntl
import os
import platform
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from minimon.run.processes import from_first, rank

NAME = "lock"  # a file in the directory; its text names the owner, flock on it is what counts


@contextmanager
def locked(directory):
    """Raises ValueError, naming the owner, where another process writes into the directory. The first of
    several processes keeps the lock for all of them."""
    path = Path(directory) / NAME
    file = from_first(lambda: take(path))  # a number that means something to the first process alone
    try:
        yield
    finally:
        # the file goes before its lock does: nobody finds a lock on a file that is about to go
        if rank() == 0:
            path.unlink(missing_ok=True)
            os.close(file)


def take(path: Path) -> int:
    """File descriptor of the locked file."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(file, 1000).decode("utf-8", "replace") or "another process"
            os.close(file)
            advice = "wait until it has ended, or name another directory"
            raise ValueError(f"{path.parent}: in use by {owner}; {advice}") from None
        except OSError:  # a file system without locks
            pass
        if path.exists() and os.fstat(file).st_ino == path.stat().st_ino:
            break
        os.close(file)  # its owner ended and removed the file in between
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {platform.node()} since {since}".encode())
    return file


@contextmanager
def one_at_a_time(directory):
    """Where processes share a file in the directory: the others wait. Beside the lock of an owner, not in its place."""
    file = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
