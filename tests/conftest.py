"""One thread: the same bits in this process and in those that tests start, and no fight over cores. A whole run of the tests is shared among
processes, a file to each, where pytest-xdist is installed."""

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT, ROOT / "data", ROOT / "tests/benchmarks"):  # scripts, not parts of the package
    sys.path.insert(0, str(folder))
torch.set_num_threads(1)
from small_world import signals, world  # noqa: E402, F401


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    option, whole = config.option, config.args_source == pytest.Config.ArgsSource.TESTPATHS
    worker = "PYTEST_XDIST_WORKER" in os.environ  # which has this hook as well
    if (
        whole
        and not worker
        and getattr(option, "numprocesses", 0) is None
        and option.dist == "no"
        and not option.usepdb
    ):
        option.numprocesses, option.dist = min(os.cpu_count() or 1, 4), "loadfile"
