"""Parts of error messages: each is one short line, whatever text a library or a file put into it. No torch."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

_LONGEST = 200
_MOST_NAMES = 8


def reason(error: BaseException) -> str:
    """Return the first line of an exception's text, or the name of its type if it has no text."""
    if "sys.set_int_max_str_digits" in str(error):
        return f"a number has more than {sys.get_int_max_str_digits():,} digits"
    lines = (line.strip() for line in str(error).splitlines())
    return next((line[:_LONGEST] for line in lines if line), type(error).__name__)


def listed(names: Iterable[str]) -> str:
    """Return `a, b, c`, shortened if there are many, or `none`."""
    every = [" ".join(name.split())[:_LONGEST] for name in names]
    more = [f"{len(every) - _MOST_NAMES} more"] if len(every) > _MOST_NAMES else []
    return ", ".join([*every[:_MOST_NAMES], *more]) or "none"


def column_fault(path: str, key: str, name: str, names: Sequence[str]) -> str:
    """Return what is wrong with the column that a key of the config names: it is missing, or there are several."""
    found = f"{names.count(name)} columns of that name" if name in names else listed(names)
    return f"{path} must have {'one' if name in names else 'the'} column {key}={name}, but has {found}"
