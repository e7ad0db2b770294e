"""One thing that a word can become."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Found:
    """A candidate of completion."""

    text: str
    """The whole word."""
    sentence: str = ""
    """What it is, for shells that show it."""
    is_open: bool = False
    """More must follow in the same word, so no blank."""
    is_guess: bool = False
    """Does not begin as what was typed: `lr` for `optimizer.lr=`."""
