"""`--picture FILE`: lengths, tokens a byte and shares of a report as one drawing. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainer.inspection.inspected import Report
from trainer.picture_file import FAINT, write_drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, GREEN, ROSE = "#4477aa", "#228866", "#cc6677"
_WIDTH, _HEIGHT = 13.0, 4.4
_BINS = 40


def write_picture(report: Report, path: Path) -> None:
    """Draw a report into a file. The same report gives the same SVG.

    Raises:
        StorageError: the disk is full, or not writable.
    """
    write_drawing(lambda: draw(report), path, title=in_words(report))


def in_words(report: Report) -> str:
    """Return what the drawing shows, for who does not see it."""
    found = report.lengths
    said = [
        f"{report.facts.kind} at {report.facts.place}",
        f"{report.documents:,} documents{' of a random sample' * report.is_sampled}",
        f"lengths in {found.unit}: median {found.median:,}, mean {found.mean:,.1f}, p90 {found.p90:,}, p99 "
        f"{found.p99:,}, longest {found.longest:,}",
    ]
    said += [] if report.bytes_per_token is None else [f"{1 / report.bytes_per_token:.3f} tokens a byte"]
    said += [f"{name} {share:.1%}" for name, share in report.shares]
    return "; ".join(said)


def draw(report: Report) -> Figure:
    """Return the drawing."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, _HEIGHT))
    figure.text(0.02, 0.955, _title(report), va="top", fontsize=12, weight="bold")
    grid = figure.add_gridspec(1, 3, width_ratios=[5, 4, 4], left=0.055, right=0.98, top=0.8, bottom=0.14, wspace=0.3)
    _lengths(figure.add_subplot(grid[0, 0]), report)
    _ratios(figure.add_subplot(grid[0, 1]), report)
    _shares(figure.add_subplot(grid[0, 2]), report)
    return figure


def _title(report: Report) -> str:
    place = report.facts.place
    place = place if len(place) <= 70 else f"...{place[-67:]}"
    return f"{report.facts.kind}: {place}, {report.documents:,} documents{' of a sample' * report.is_sampled}"


def _lengths(axes: Axes, report: Report) -> None:
    found = report.lengths
    _plain(axes, f"length of documents ({found.unit})")
    bars = found.histogram
    axes.bar(
        [str(low) for low, _, _ in bars], [documents for _, _, documents in bars], color=BLUE, width=0.9, align="edge"
    )
    axes.tick_params(axis="x", labelrotation=60, labelsize=7)
    axes.set_ylabel("documents")
    axes.set_xlabel(f"median {found.median:,}, mean {found.mean:,.0f}, p99 {found.p99:,}", color=FAINT)


def _ratios(axes: Axes, report: Report) -> None:
    _plain(axes, "tokens a byte, by document")
    if not report.tokens_per_byte:
        axes.text(0.5, 0.5, "not known without a tokenizer", ha="center", va="center", transform=axes.transAxes)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    ratios = np.array(report.tokens_per_byte)
    axes.hist(ratios, bins=_BINS, range=(0.0, max(1e-9, float(np.quantile(ratios, 0.99)) * 1.1)), color=GREEN)
    axes.set_ylabel("documents")
    if report.bytes_per_token:
        mean = 1 / report.bytes_per_token
        axes.axvline(mean, color=FAINT, linestyle="--", linewidth=1)
        axes.set_xlabel(f"dashed: {mean:.3f} in all", color=FAINT)


def _shares(axes: Axes, report: Report) -> None:
    _plain(axes, f"shares of {report.lengths.unit}")
    names = [name if len(name) <= 24 else f"...{name[-21:]}" for name, _ in report.shares]
    places = np.arange(len(names))
    axes.barh(places, [share for _, share in report.shares], color=ROSE, height=0.7)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15)
    axes.set_xticks([0, 0.5, 1.0], ["0", "50 %", "100 %"])
    for place, (_, share) in zip(places.tolist(), report.shares, strict=True):
        axes.text(share + 0.02, place, f"{share:.1%}", va="center", fontsize=8)


def _plain(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
