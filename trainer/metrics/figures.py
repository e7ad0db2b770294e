"""Numbers, counts and times in few characters."""

from __future__ import annotations


def number(value: float, digits: int) -> str:
    """Return a number in at most seven characters."""
    text = f"{value:.{digits}f}"
    vanishes = 0 < abs(value) < 10.0**-digits
    return f"{value:.1e}" if vanishes or len(text) > 7 else text


def short(value: float) -> str:
    """Return a count in at most six characters, e.g. 12.3k."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if 0.9995 * size <= value < 999.5 * size:
            return f"{value / size:#.3g}".rstrip(".") + unit
    return f"{value:.3g}" if value < 1000 else f"{value:.0e}"


def duration(seconds: float) -> str:
    """Return a time in at most six characters, e.g. 4m12s."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    if hours >= 100:
        return f"{hours // 24}d{hours % 24}h"
    if hours:
        return f"{hours}h{rest // 60:02d}m"
    return f"{rest // 60}m{rest % 60:02d}s"
