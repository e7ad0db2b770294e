"""Texts of a run made safe for a terminal: another user may have written them."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return a text as one line, without the control codes of a terminal."""
    return "".join(letter if letter.isprintable() else " " if letter.isspace() else "?" for letter in text)
