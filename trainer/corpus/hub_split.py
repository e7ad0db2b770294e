"""Parts of a Hugging Face split, `train[:1000]+test[10%:20%]`: the library reads them only when it does not stream."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from trainer.errors import DataError

_BOUND = r"(-?\d+%?)?"
_PART = re.compile(rf"\s*([^\s\[\]+]+?)(?:\[{_BOUND}:{_BOUND}\])?\s*")


@dataclass(frozen=True)
class Part:
    """A split, or its rows from `start` on and before `stop`, counted as in Python: a number, or a share with %."""

    split: str
    start: str | None
    stop: str | None

    def rows(self, count: Callable[[], int]) -> tuple[int, int | None]:
        """Return the first row and the one after the last.

        Args:
            count: returns the number of rows of the split; called only where it must be known.
        """
        first, last = _row(self.start, count), _row(self.stop, count)
        return first or 0, last


def sliced_parts(spec: str) -> list[Part]:
    """Return the parts of `data.hub_split`; an empty list if it names only whole splits.

    Raises:
        DataError: it cannot be read.
    """
    if "[" not in spec:
        return []
    found = [_PART.fullmatch(part) for part in spec.split("+")]
    parts = [Part(match[1], match[2], match[3]) for match in found if match is not None]
    shares = [bound for part in parts for bound in (part.start, part.stop) if bound and bound.endswith("%")]
    if len(parts) < len(found) or any(abs(int(share[:-1])) > 100 for share in shares):
        raise DataError(
            f"data.hub_split must be like train, train+test, train[:1000] or train[10%:20%], but is {spec}; to read "
            "only the first documents set data.max_documents"
        )
    return parts


def _row(bound: str | None, count: Callable[[], int]) -> int | None:
    if not bound:
        return None
    number = int(bound.removesuffix("%"))
    if bound.endswith("%"):
        # Rounded like the library does when it does not stream.
        number = round(abs(number) * count() / 100) * (1 if number >= 0 else -1)
    return number if number >= 0 and not bound.startswith("-") else max(0, count() + number)
