"""One candidate for a word that is being typed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Found:
    """A candidate of completion."""

    text: str
    """The whole word."""
    sentence: str = ""
    """Meaning of the word, for shells that show it."""
    is_open: bool = False
    """True if more must follow in the same word, so that the shell adds no blank."""
    is_guess: bool = False
    """True if it does not begin as typed: `lr` for `optimizer.lr=`."""
