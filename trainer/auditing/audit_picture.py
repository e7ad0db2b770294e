"""`trident data audit --picture FILE`: the place in the stream at each step, and what is proven of it. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from trainer.auditing.history import History
from trainer.auditing.proof import Proof, Verdict
from trainer.auditing.two_runs import Comparison
from trainer.picture_file import FAINT, INK, write_drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = MappingProxyType(
    {
        Verdict.proven: "#1a7f37",
        Verdict.differs: "#cf222e",
        Verdict.unsaid: "#9a6700",
        Verdict.open: FAINT,
        Verdict.replaced: FAINT,
    }
)
_WORDS = MappingProxyType(
    {
        Verdict.proven: "proven: the hash is that of the data",
        Verdict.differs: "another hash than that of the data",
        Verdict.unsaid: "not known",
        Verdict.open: "no hash behind it",
        Verdict.replaced: "the data were replaced since",
    }
)
"""Colour and words of each outcome; the form of its line differs as well."""
_DASHES: Mapping[Verdict, tuple[float, Sequence[float]]] = MappingProxyType(
    {
        Verdict.proven: (0, ()),
        Verdict.differs: (0, (1, 1.5)),
        Verdict.unsaid: (0, (4, 2, 1, 2)),
        Verdict.open: (0, (4, 2)),
        Verdict.replaced: (0, (1, 4)),
    }
)


def write_picture(
    histories: Sequence[History], proofs: Sequence[Sequence[Proof]], comparison: Comparison | None, path: Path
) -> None:
    """Draw into a file that is whole or not there.

    Raises:
        StorageError: the disk is full, or not writable.
    """
    title = "tokens read by " + " and ".join(history.run.name for history in histories)
    write_drawing(lambda: _draw(histories, proofs, comparison, title), path, title)


def _draw(
    histories: Sequence[History], proofs: Sequence[Sequence[Proof]], comparison: Comparison | None, title: str
) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 1.2 + 3.2 * len(histories)), layout="constrained")
    figure.suptitle(title, color=INK)
    rows = figure.subplots(len(histories), 1, sharex=True, squeeze=False)
    used: list[Verdict] = []
    for axes, history, found in zip(rows[:, 0], histories, proofs, strict=True):
        _draw_run(axes, history, found)
        used += [proof.verdict for proof in found if proof.verdict not in used]
        if comparison is not None and comparison.first_difference is not None:
            axes.axvline(comparison.first_difference, color=INK, linewidth=1)
            axes.annotate(
                f" first difference: step {comparison.first_difference}",
                (comparison.first_difference, 0.02),
                xycoords=("data", "axes fraction"),
            )
        axes.set_title(str(history.run), loc="left", fontsize=8, color=FAINT)
        axes.set_ylabel("tokens of the stream")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    rows[-1, 0].set_xlabel("step")
    marks = [Line2D([], [], color=COLOURS[one], linestyle=_DASHES[one], label=_WORDS[one]) for one in used]
    if Verdict.open not in used and any(
        _end(found) < history.last for history, found in zip(histories, proofs, strict=True)
    ):
        marks.append(Line2D([], [], color=FAINT, linestyle=_DASHES[Verdict.open], label="not looked at"))
    if any(history.skips for history in histories):
        marks.append(Line2D([], [], color=INK, marker="x", linestyle="", label="skipped batch"))
    figure.legend(handles=marks, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _end(proofs: Sequence[Proof]) -> int:
    return proofs[-1].last if proofs else 0


def _draw_run(axes: Any, history: History, proofs: Sequence[Proof]) -> None:
    for span in history.spans:
        # Where nothing was proven, the line is what the folder says.
        axes.plot(*_line(span.stretch.step, span.last, history), color=FAINT, linestyle=_DASHES[Verdict.open])
    for proof in proofs:
        axes.plot(
            *_line(proof.first, proof.last, history), color=COLOURS[proof.verdict], linestyle=_DASHES[proof.verdict]
        )
        if proof.witness is not None:
            axes.plot([proof.last], [proof.position], marker="o", markersize=3, color=COLOURS[proof.verdict])
    for skip in history.skips:
        axes.plot([skip.step], [skip.position], marker="x", color=INK)


def _line(first: int, last: int, history: History) -> tuple[list[int], list[int]]:
    """Return steps and places behind them, for a line that begins in front of `first`."""
    span = history.span_of(first)
    if span is None:
        return [], []
    ramp = (step for step, _ in span.stretch.sizes.warmup if first <= step < last)
    steps = [first - 1, *ramp, last]
    return steps, [span.stretch.position_of(step + 1) for step in steps]
