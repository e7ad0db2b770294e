"""TensorBoard files of rows and texts. A failure to write them does not stop training."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trainer.config.schema import LoggingConfig
from trainer.errors import ConfigError
from trainer.loop.events import RunEnd, StepReport
from trainer.metrics.sink import Row, Sample, Sink
from trainer.metrics.sink_thread import Background

TENSORBOARD_FOLDER = "tensorboard"
_FINISH_S = 30.0


def check_tensorboard(logging: LoggingConfig) -> None:
    """Check that the package is installed if it is asked for. Imports nothing.

    Raises:
        ConfigError: it is not installed.
    """
    if logging.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "logging.tensorboard=true needs the package tensorboard, but it is not installed",
            hints=["pip install tensorboard", "or leave logging.tensorboard out"],
        )


class TensorBoardSink(Sink):
    """Writes scalars and texts into `folder`, under the names of the rows. A resumed run's steps replace earlier ones.

    Args:
        folder: folder of the event files.
        warn: warns the user, once.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self._folder = folder
        self._warn = warn
        # Its writer flushes by waiting for a thread that may have died from a full disk.
        self._calls = Background("tensorboard")
        self._writer: Any = None
        self._is_told = False

    def start(self, first_step: int) -> None:
        """Open a new file; steps from `first_step` on in earlier files no longer count."""
        self._calls.submit(lambda: self._open(first_step))

    def rewind(self, step: int) -> None:
        """Open a new file, with which later steps of this one count no more."""
        self._calls.submit(self._close)
        self._calls.submit(lambda: self._open(step + 1))

    def write(self, row: Row, report: StepReport) -> None:
        """Hand the row over."""
        self._calls.submit(lambda: self._add(dict(row)))
        self._tell()

    def show(self, samples: Sequence[Sample]) -> None:
        """Hand the texts over."""
        self._calls.submit(lambda: self._add_texts(samples))

    def end(self, end: RunEnd) -> None:
        """Close the file."""
        self._calls.submit(self._close)
        self._calls.finish(_FINISH_S)
        self._tell()

    def _tell(self) -> None:
        if self._calls.failure is not None and not self._is_told:
            self._is_told = True
            error = self._calls.failure
            self._warn(f"TensorBoard is off for the rest of this run ({type(error).__name__}: {error})")

    def _open(self, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=first_step)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _add(self, row: Row) -> None:
        step = row["step"]
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, step)

    def _add_texts(self, samples: Sequence[Sample]) -> None:
        for index, sample in enumerate(samples):
            # As a block of code: the model's texts are no Markdown.
            lines = f"{sample.prompt}{sample.text}".splitlines()
            text = "\n".join(f"    {line}" for line in lines)
            self._writer.add_text(f"samples/{index}", text, sample.step)
