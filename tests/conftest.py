"""One thread: the same bits in this process and in those that tests start, and no fight over two cores."""

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT, ROOT / "data"):           # train.py, eval.py, world.py and pretrain.py are scripts, not parts of the package
    sys.path.insert(0, str(folder))
torch.set_num_threads(1)
from small_world import signals, world  # noqa: E402, F401
