"""`trident plan --picture FILE`: the memory of every pipeline rank, and the step on a clock, as one drawing. No torch.

A row is a pipeline rank: on the left its memory by purpose, with the device's capacity as a line, on the right what it
does when. matplotlib (extra `plots`) is imported only when something is drawn.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.picture_file import write_drawing
from trainer.planner.prediction import GIB, StageMemory
from trainer.planner.timeline import Timeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


def write_picture(picture: Picture, path: Path) -> None:
    """Draw a picture into a file that is whole or not there. The same picture gives the same SVG.

    Raises:
        StorageError: the disk is full, or not writable.
    """

    def drawn() -> Figure:
        from trainer.planner.picture_parts import draw

        return draw(picture)

    write_drawing(drawn, path)


def wrapped(text: str, letters: int) -> list[str]:
    """Return a text in lines of at most that many letters; a single word, such as an override, is not divided."""
    return textwrap.wrap(text, letters, break_long_words=False, break_on_hyphens=False)


def in_unit(largest: float) -> tuple[str, float]:
    """Return the unit in which bytes up to the largest are shown, and its bytes."""
    return ("GiB", GIB) if largest >= GIB else ("MiB", 1 << 20)
