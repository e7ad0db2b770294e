"""The axis at fault, found by comparing trials that disagree with the oracle with those that agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.proving.proof_trials import Axis
from trainer.proving.verdict import Verdict


@dataclass(frozen=True)
class Fault:
    """The smallest trials that disagree, and the axes that they have and those that agree do not."""

    axes: tuple[str, ...]
    """Axes at fault; empty if one plain process disagrees already."""
    verdict: Verdict

    @property
    def title(self) -> str:
        """The axes in words."""
        return " x ".join(self.axes) or "one process alone"


def faults_of(verdicts: Sequence[Verdict]) -> list[Fault]:
    """Return the faults behind some verdicts: for each smallest set of axes that disagrees, one.

    Axes with which other trials agree are not at fault by themselves; where each of them agrees alone, it is their
    combination.
    """
    wrong = [one for one in verdicts if not one.agrees]
    fine = [one.trial.axes for one in verdicts if one.agrees]
    found: dict[tuple[str, ...], Fault] = {}
    for one in wrong:
        axes = one.trial.axes
        if any(other.trial.axes < axes for other in wrong):
            continue
        cleared = frozenset[Axis]().union(*(other for other in fine if other < axes))
        at_fault = (axes - cleared) or axes
        named = tuple(axis.value for axis in Axis if axis in at_fault)
        found.setdefault(named, Fault(named, one))
    return list(found.values())
