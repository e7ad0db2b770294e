"""`trident plan --picture FILE`: the memory of every pipeline rank, and the step on a clock, as one drawing. No torch.

A row is a pipeline rank: on the left its memory by purpose, with the device's capacity as a line, on the right what it
does when. matplotlib (extra `plots`) is imported only when something is drawn.
"""

from __future__ import annotations

import importlib.util
import io
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import ConfigError
from trainer.files import write_atomically
from trainer.planner.prediction import GIB, StageMemory
from trainer.planner.timeline import Timeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTION = "--picture"
SUFFIXES = (".svg", ".png")


class Verdict(Enum):
    """Colour of the sentence on whether the run fits: of high contrast on white, and told by its words too."""

    fits = "#1a7f37"
    tight = "#9a6700"
    refused = "#cf222e"


@dataclass(frozen=True)
class Picture:
    """Everything that is drawn."""

    title: str
    """Model and cluster, in a line."""
    layout: str
    """The layout in words."""
    verdict: str
    """A sentence: whether it fits, with the fullest stage and the margin."""
    kind: Verdict
    stages: Sequence[StageMemory]
    """Memory of each pipeline rank, in order."""
    device_bytes: int
    """Memory that a rank may use."""
    timeline: Timeline
    """Passes of each pipeline rank, in order."""


def check_picture(path: Path) -> None:
    """Check that a picture can be drawn and written there, before anything is computed.

    Raises:
        ConfigError: another suffix than .svg and .png, a folder that is not there or cannot be written, a folder of
            that name, or no matplotlib.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"{OPTION} must end in .svg or .png, but is {path}; use for example {path.stem or 'plan'}.svg"
        )
    folder = path.parent
    if not folder.is_dir():
        raise ConfigError(
            f"{OPTION} must be in a folder that exists, but {folder} is none; make it, or name another one"
        )
    if path.is_dir():
        raise ConfigError(f"{OPTION} must name a file, but {path} is a folder; name a file in it")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"{folder} cannot ({error.strerror})"
        raise ConfigError(
            f"{OPTION} must be in a folder that can be written, but {reason}; name another one"
        ) from error
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            f"{OPTION} needs the package matplotlib, but it is not installed; use pip install 'trident-trainer[plots]'"
        )


def write_picture(picture: Picture, path: Path) -> None:
    """Draw a picture into a file that is whole or not there. The same picture gives the same SVG.

    Raises:
        StorageError: the disk is full, or not writable.
    """
    import matplotlib

    from trainer.planner.picture_parts import STYLE, draw

    kind = path.suffix.lower().removeprefix(".")
    # On matplotlib's own defaults, so that no file of the user's changes the drawing.
    style: dict[Any, Any] = {**matplotlib.rcParamsDefault}
    style |= STYLE
    with matplotlib.rc_context(style):
        figure: Figure = draw(picture)
        content = io.BytesIO()
        metadata = {"Date": None, "Creator": "Trident"} if kind == "svg" else {"Software": "Trident"}
        figure.savefig(content, format=kind, metadata=metadata)
    write_atomically(path, content.getvalue(), OPTION)


def wrapped(text: str, letters: int) -> list[str]:
    """Return a text in lines of at most that many letters; a single word, such as an override, is not divided."""
    return textwrap.wrap(text, letters, break_long_words=False, break_on_hyphens=False)


def in_unit(largest: float) -> tuple[str, float]:
    """Return the unit in which bytes up to the largest are shown, and its bytes."""
    return ("GiB", GIB) if largest >= GIB else ("MiB", 1 << 20)
