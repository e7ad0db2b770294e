"""Parts of error messages: each is one short line, whatever text a library or a file put into it. No torch."""

from __future__ import annotations

from collections.abc import Iterable

_LONGEST = 200
_MOST_NAMES = 8


def reason(error: BaseException) -> str:
    """Return the first line of an exception's text, or the name of its type if it has no text."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line[:_LONGEST] for line in lines if line), type(error).__name__)


def listed(names: Iterable[str]) -> str:
    """Return `a, b, c`, shortened if there are many, or `none`."""
    every = [" ".join(name.split())[:_LONGEST] for name in names]
    more = [f"{len(every) - _MOST_NAMES} more"] if len(every) > _MOST_NAMES else []
    return ", ".join([*every[:_MOST_NAMES], *more]) or "none"
