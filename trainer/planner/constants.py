"""A number that a prediction rests on, together with where it comes from. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Constant:
    """A number and its source: a data sheet, a paper, a measurement of this machine with its date, or a fit."""

    value: float
    source: str
