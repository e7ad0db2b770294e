"""Texts on a terminal as they are written: one after the other, the first that is not whole as its tokens come."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trainer.generation.text import Text


class InOrder:
    """Shows texts in their order, though several grow at once and a later one may be whole before an earlier one.

    Args:
        starts: what is shown before each text.
        write: takes what is shown, piece by piece.
    """

    def __init__(self, starts: Sequence[str], write: Callable[[str], None]) -> None:
        self._starts = starts
        self._write = write
        self._texts: dict[int, Text] = {}
        self._current = 0
        self._shown: str | None = None
        """The part of the current text that is shown; None: not even its start."""

    def changed(self, index: int, text: Text) -> None:
        """Show what can be shown now that a text has changed."""
        self._texts[index] = text
        while (current := self._texts.get(self._current)) is not None:
            self._show(current)
            if current.end is None:
                return
            self._write("\n")
            self._current, self._shown = self._current + 1, None

    def _show(self, text: Text) -> None:
        start = self._starts[self._current]
        if self._shown is None:
            self._write(start)
            self._shown = ""
        if not text.shown.startswith(self._shown):
            # The tokenizer wrote an earlier word anew, which a terminal cannot take back.
            self._write(f"\n{start}")
            self._shown = ""
        self._write(text.shown[len(self._shown) :])
        self._shown = text.shown
