"""The terminal as rich sees it: its width, its abilities, and what happens when it goes away."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import TextIO, cast

from rich.console import Console, ConsoleDimensions

from trainer.log import silence

WIDTH = 80
"""Columns assumed for a stream that is no terminal, and the largest width of fixed text."""
_HEIGHT = 25
_COERCED = ("C.UTF-8", "C.utf8", "UTF-8")
"""Values that Python itself gives LC_CTYPE under LANG=C (PEP 538)."""


class TrainingConsole(Console):
    """A rich console that goes quiet when its reader goes away; rich itself would end the process.

    Args:
        stream: the stream to write to; it need not be this process's stdout, where rich would look for a size.
        is_terminal: true to draw as on a terminal (default: what the stream says).
        width: columns (default: those of the terminal, at every moment).
        environ: environment variables (default: the process's).
    """

    def __init__(
        self,
        stream: TextIO,
        is_terminal: bool | None = None,
        width: int | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._is_unicode = speaks_unicode(stream, os.environ if environ is None else environ)
        # Set explicitly, because rich takes FORCE_COLOR for a terminal too.
        drawn = stream.isatty() if is_terminal is None else is_terminal
        super().__init__(file=stream, force_terminal=drawn, width=width, highlight=False, _environ=environ)

    @property
    def can_redraw(self) -> bool:
        """True if a line can be redrawn: on a terminal that knows more than line feeds."""
        return self.is_terminal and not self.is_dumb_terminal

    @property
    def encoding(self) -> str:
        """Encoding by which rich chooses its lines and bars."""
        return "utf-8" if self._is_unicode else "ascii"

    @property
    def is_unicode(self) -> bool:
        """True if the reader sees more than ASCII here."""
        return self._is_unicode

    @property
    def size(self) -> ConsoleDimensions:
        """Columns and lines."""
        columns, lines = WIDTH, _HEIGHT
        with suppress(OSError, ValueError):
            found = os.get_terminal_size(self.file.fileno())
            columns, lines = found.columns or WIDTH, found.lines or _HEIGHT
        return ConsoleDimensions(self._width or columns, lines)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, _ = new_size

    def on_broken_pipe(self) -> None:
        """Print nothing more."""
        self.quiet = True
        silence(cast(TextIO, self.file))

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError:
            # The terminal is gone (EIO) or its file's disk is full; rich only handles closed pipes.
            self.on_broken_pipe()


def speaks_unicode(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Return whether the reader of a stream sees more than ASCII.

    Python writes UTF-8 under LANG=C too, although a person who set that did not ask for it.
    """
    ctype = environ.get("LC_CTYPE")
    if ctype in _COERCED and environ.get("LANG", "C") in ("", "C", "POSIX"):
        ctype = None
    locale = environ.get("LC_ALL") or ctype or environ.get("LANG") or "C"
    return locale not in ("C", "POSIX") and "utf" in (getattr(stream, "encoding", None) or "utf-8").lower()
