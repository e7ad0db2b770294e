"""A drawing as a file: whether it can be made, and the style that all drawings share. No torch.

matplotlib (extra `plots`) is imported only when something is drawn.
"""

from __future__ import annotations

import importlib.util
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from trainer.errors import ConfigError
from trainer.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTION = "--picture"
SUFFIXES = (".svg", ".png")
INK, FAINT = "#1f2328", "#59636e"
STYLE: Mapping[str, Any] = MappingProxyType(
    {
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "axes.linewidth": 0.8,
        "xtick.color": FAINT,
        "ytick.color": INK,
        "hatch.linewidth": 0.6,
        "text.parse_math": False,
        "svg.hashsalt": "trident",
        "savefig.dpi": 150,
        "savefig.facecolor": "white",
    }
)
"""Settings of matplotlib for every drawing."""
_MADE_BY: Mapping[str, Mapping[str, str | None]] = MappingProxyType(
    {
        ".svg": {"Date": None, "Creator": "Trident"},
        ".png": {"Software": "Trident"},
        ".pdf": {"CreationDate": None, "Creator": "Trident"},
    }
)
"""Suffix -> entries of the file itself; without a time, so that the same drawing gives the same file."""


def check_picture(path: Path, option: str = OPTION, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Check that a picture can be drawn and written there, before anything is computed.

    Args:
        path: the file.
        option: the option that names it.
        suffixes: those that it may have.

    Raises:
        ConfigError: another suffix, a folder that is not there or cannot be written, a folder of that name, or no
            matplotlib.
    """
    if path.suffix.lower() not in suffixes:
        wanted = " or ".join(suffixes)
        raise ConfigError(
            f"{option} must end in {wanted}, but is {path}; use for example {path.stem or 'plan'}{suffixes[0]}"
        )
    check_place(path, option)
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            f"{option} needs the package matplotlib, but it is not installed; use pip install 'trident-trainer[plots]'"
        )


def check_place(path: Path, option: str) -> None:
    """Check that a file can be written there.

    Raises:
        ConfigError: its folder is not there or cannot be written, or it is a folder.
    """
    folder = path.parent
    if not folder.is_dir():
        raise ConfigError(
            f"{option} must be in a folder that exists, but {folder} is none; make it, or name another one"
        )
    if path.is_dir():
        raise ConfigError(f"{option} must name a file, but {path} is a folder; name a file in it")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"{folder} cannot ({error.strerror})"
        raise ConfigError(
            f"{option} must be in a folder that can be written, but {reason}; name another one"
        ) from error


def write_drawing(draw: Callable[[], Figure], path: Path, title: str | None = None, option: str = OPTION) -> None:
    """Draw into a file that is whole or not there. The same drawing gives the same SVG and the same PDF.

    Args:
        draw: makes the drawing.
        path: a file that `check_picture` has let pass.
        title: words for who does not see it: the title of an SVG or a PDF, the description in a PNG.
        option: the option that names the file.

    Raises:
        StorageError: the disk is full, or not writable.
    """
    import matplotlib

    kind = path.suffix.lower().removeprefix(".")
    # On matplotlib's own defaults, so that no file of the user's changes the drawing.
    style: dict[Any, Any] = {**matplotlib.rcParamsDefault}
    style |= STYLE
    told: dict[str, str | None] = {} if title is None else {"Title": title}
    told |= _MADE_BY.get(f".{kind}", {})
    with matplotlib.rc_context(style):
        content = io.BytesIO()
        draw().savefig(content, format=kind, metadata=told)
    write_atomically(path, content.getvalue(), option)
