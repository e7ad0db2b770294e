"""The axis at fault, found by comparing trials that disagree with the oracle with those that agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from trainer.proving.proof_trials import Axis
from trainer.proving.verdict import FIRST_LOSS, Verdict

ALONE = "one process alone"
_MOST_TOGETHER = 3


@dataclass(frozen=True)
class Fault:
    """Axes that trials that disagree have, and those that agree have not."""

    axes: tuple[Axis, ...]
    """Axes at fault together; empty if one plain process disagrees already."""
    verdict: Verdict
    """The smallest trial that shows it."""
    vectors: tuple[str, ...] = ()
    """Kinds of biases and weights of norms each of which makes that trial disagree, when all others are as in a new
    model, with which it agrees. Empty where that is not so, or was not looked at."""

    @property
    def vectors_text(self) -> str:
        """The vectors as a sentence; empty without any."""
        if not self.vectors:
            return ""
        return f"with all biases and norms as in a new model it agrees; {' and '.join(self.vectors)} make it differ"

    @property
    def title(self) -> str:
        """The axes in words."""
        return " x ".join(axis.value for axis in self.axes) or ALONE


def is_of_forward(fault: Fault) -> bool:
    """Return whether forward is wrong already, so that the gradients of all tensors are."""
    return any(one.what == FIRST_LOSS for one in fault.verdict.findings)


def vectors_at_fault(verdict: Callable[[str], bool], kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds of vectors that make a trial disagree by themselves, if it agrees without any.

    Args:
        verdict: returns whether the trial agrees with the oracle, given the one kind that is drawn.
        kinds: all of them.
    """
    return tuple(kind for kind in kinds if not verdict(kind)) if verdict("") else ()


def faults_of(verdicts: Sequence[Verdict]) -> list[Fault]:
    """Return the faults that explain which trials disagree: one, if one explains all of them.

    That is the axis, or the fewest axes together, that every trial that disagrees has, and none that agrees. Where
    there is none, each smallest set of axes that disagrees is a fault of its own.
    """
    wrong = sorted((one for one in verdicts if not one.agrees), key=lambda one: len(one.trial.axes))
    fine = [one.trial.axes for one in verdicts if one.agrees]
    if not wrong:
        return []
    if not wrong[0].trial.axes:
        return [Fault((), wrong[0])]
    shared = frozenset(Axis).intersection(*(one.trial.axes for one in wrong))
    if together := _explaining(shared, fine):
        return [Fault(together, wrong[0])]
    found: dict[tuple[Axis, ...], Fault] = {}
    for one in wrong:
        axes = one.trial.axes
        if not any(other.trial.axes < axes for other in wrong):
            named = _explaining(axes, fine) or _ordered(axes)
            found.setdefault(named, Fault(named, one))
    return list(found.values())


def _explaining(axes: frozenset[Axis], fine: Sequence[frozenset[Axis]]) -> tuple[Axis, ...]:
    """Return the fewest of some axes that no trial that agrees has together.

    Single axes that cannot be told apart are all returned; of several combinations the first.
    """
    alone = [axis for axis in _ordered(axes) if not any(axis in other for other in fine)]
    if alone:
        return tuple(alone)
    for number in range(2, _MOST_TOGETHER + 1):
        for some in combinations(_ordered(axes), number):
            if not any(other.issuperset(some) for other in fine):
                return some
    return ()


def _ordered(axes: frozenset[Axis]) -> tuple[Axis, ...]:
    return tuple(axis for axis in Axis if axis in axes)
