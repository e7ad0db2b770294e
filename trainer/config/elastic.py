"""The word for a size that follows the machines that a run finds. No project imports."""

from __future__ import annotations

from enum import Enum


class Elastic(Enum):
    """The word `auto`: as many as there is room for."""

    auto = "auto"
