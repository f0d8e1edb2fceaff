"""The log as TensorBoard's event files, where the package is installed and --tensorboard asks for them."""

from minimon.run.processes import rank


def event_writer(directory, wanted: bool):
    """An object with add(step, numbers) and close(); checks.py has seen to it that the package is there where it is wanted."""
    if not wanted or rank() > 0:
        return NoEvents()
    from torch.utils.tensorboard import SummaryWriter  # slow to import, seldom wanted

    return Events(SummaryWriter(str(directory)))


class Events:
    def __init__(self, writer):
        self.writer = writer

    def add(self, step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class NoEvents:
    def add(self, step, numbers):
        pass

    def close(self):
        pass
