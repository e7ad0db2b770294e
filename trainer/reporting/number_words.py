"""Numbers, times and places of a run in words for the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

UNITS = (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3))


def short(value: float) -> str:
    """Return a number in few characters: 1.07M, 0.25, 3e-04."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    for unit, scale in UNITS:
        if size >= 0.9995 * scale:
            return f"{_trimmed(f'{value / scale:#.3g}')}{unit}"
    if size and size < 1e-3:
        return f"{value:.2g}"
    return _trimmed(f"{value:#.3g}")


def exact(value: float) -> str:
    """Return a number with five significant digits, whole numbers with all of theirs."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if float(value).is_integer() and size < 1e15:
        return f"{int(value):,}"
    if size >= 1e4:
        return f"{value:,.0f}"
    return f"{value:.3e}" if size and size < 1e-3 else _trimmed(f"{value:#.5g}")


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def duration(seconds: float) -> str:
    """Return a time with its two largest units: 4 h 12 min."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 60:
        return f"{_trimmed(f'{seconds:#.3g}')} s"
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} days {hours} h" if hours else f"{days} days"


def in_one_unit(seconds: float) -> tuple[str, str]:
    """Return a time as a number with three digits, and its unit."""
    for unit, size in (("days", 2 * 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= 0.9995 * size:
            return _trimmed(f"{seconds / (86400.0 if unit == 'days' else size):#.3g}"), unit
    return _trimmed(f"{1000 * seconds:#.3g}"), "ms"


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun: 1 step, 2 steps."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def joined(words: Sequence[str], last: str = "and") -> str:
    """Return words as a list in a sentence."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}" if words else ""


def purpose_name(name: str) -> str:
    """Return the words of a purpose of memory, or of another name of a file."""
    return name.replace("_", " ")
