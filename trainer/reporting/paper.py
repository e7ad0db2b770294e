"""`trident report --png` and `--pdf`: the curves of a page as one figure for a paper. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainer.picture_file import FAINT, write_drawing
from trainer.records.run_record import RunRecord
from trainer.reporting.charts import Chart, Kind, Line
from trainer.reporting.curves import curves_of
from trainer.reporting.thinning import Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = ("loss", "eval_loss", "throughput", "mfu", "grad_norm", "learning_rate", "sources", "bubble")
"""Charts that a figure has, in order, where the runs have them."""
COLOURS = (
    *("#1d4ed8", "#c2410c", "#0f766e", "#7c3aed", "#be185d", "#8a6100"),
    *("#15803d", "#0e7490", "#b91c1c", "#4d7c0f", "#a21caf", "#475569"),
)
"""The page's own colours on white."""
BAND = "#7c3aed"
SMOOTHING = 0.6
_WARM_UP = 0.03
"""Share of the steps at the beginning that does not decide the y axis, as on the page."""
_STYLES = ("-", "--", ":")
_MOST_IN_LEGEND = 12


def write_figure(records: Sequence[RunRecord], title: str, path: Path, option: str) -> None:
    """Draw the curves into a file that is whole or not there.

    Args:
        records: the runs.
        title: title of the file, for who does not see it.
        path: a file that `check_picture` has let pass; its suffix is the format.
        option: the option that names it.

    Raises:
        StorageError: the disk is full, or not writable.
    """
    charts = {chart.key: chart for section in curves_of(records).values() for chart in section}
    shown = [charts[key] for key in PANELS if key in charts]
    write_drawing(lambda: _draw(shown, title), path, f"Curves of {title}", option)


def _draw(charts: Sequence[Chart], title: str) -> Figure:
    from matplotlib.figure import Figure

    rows = max(1, (len(charts) + 1) // 2)
    figure = Figure(figsize=(9, 0.5 + 2.5 * rows), layout="constrained")
    figure.suptitle(title, fontsize=11)
    if not charts:
        figure.text(0.5, 0.4, "nothing was logged", ha="center", color=FAINT)
        return figure
    panels = figure.subplots(rows, min(2, len(charts)), squeeze=False).flatten()
    for axes, chart in zip(panels, charts, strict=False):
        _panel(axes, chart)
    for axes in panels[len(charts) :]:
        axes.set_axis_off()
    return figure


def _panel(axes: Axes, chart: Chart) -> None:
    for line in chart.lines:
        _line(axes, chart, line)
    if chart.is_log and all(value > 0 for line in chart.lines for value in line.drawn.values):
        axes.set_yscale("log")
    else:
        _fit(axes, chart)
    if chart.limit is not None:
        axes.axhline(chart.limit, color="#8a5200", linewidth=0.9, linestyle=(0, (4, 3)), label=chart.limit_name)
    axes.set_title(chart.title, loc="left", fontsize=9.5)
    axes.set_ylabel(chart.unit, fontsize=8)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#e8ebf0", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles = axes.get_legend_handles_labels()[0]
    if 1 < len(handles) <= _MOST_IN_LEGEND:
        axes.legend(fontsize=6.5 if len(handles) > 6 else 7.5, frameon=False)


def _line(axes: Axes, chart: Chart, line: Line) -> None:
    colour = BAND if line.colour else COLOURS[line.tint % len(COLOURS)]
    steps, values = line.drawn.steps, line.drawn.values
    style = _STYLES[line.dash % len(_STYLES)]
    if line.kind is Kind.band:
        axes.fill_between(steps, line.lows, line.highs, color=colour, alpha=0.16, linewidth=0, label=line.name)
        axes.plot(steps, values, color=colour, linewidth=0.9, linestyle=(0, (4, 3)))
    elif line.kind is Kind.points:
        axes.plot(steps, values, color=colour, marker="o", markersize=3, linewidth=0.7, label=line.name)
    elif line.kind is not Kind.line:
        axes.plot(steps, values, color=colour, linewidth=1, linestyle=(0, (3, 2)), label=line.name)
    elif chart.is_smooth and len(values) >= 8:
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.6)
        at = line.drawn.mean_steps or steps
        calm = smoothed(np.array(line.drawn.means or values))
        axes.plot(at, calm, color=colour, linewidth=1.3, linestyle=style, label=line.name)
    else:
        axes.plot(steps, values, color=colour, linewidth=1.2, linestyle=style, label=line.name)


def smoothed(values: Values, weight: float = SMOOTHING) -> Values:
    """Return the exponential moving mean of values, without its pull to 0 at the beginning, as the page has it."""
    result = np.empty(len(values))
    total = mass = 0.0
    for place, value in enumerate(values.tolist()):
        total = total * weight + (1 - weight) * value
        mass = mass * weight + 1 - weight
        result[place] = total / mass
    return result


def _fit(axes: Axes, chart: Chart) -> None:
    """Set the y axis to what comes behind the first steps, if that is anything."""
    lines = [line for line in chart.lines if line.kind is not Kind.band]
    ends = [step for line in lines for step in (line.drawn.steps[0], line.drawn.steps[-1])]
    start = min(ends) + _WARM_UP * (max(ends) - min(ends))
    shown = [
        value
        for line in lines
        for step, value in zip(line.drawn.steps, line.drawn.values, strict=True)
        if step >= start
    ]
    if len(shown) > 1 and max(shown) > min(shown):
        low = 0.0 if chart.from_zero else min(shown)
        edge = 0.04 * (max(shown) - low)
        axes.set_ylim(low - (0 if chart.from_zero else edge), max(shown) + edge)
