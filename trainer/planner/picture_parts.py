"""The parts of the planner's picture, drawn with matplotlib. Imported only when one is drawn. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from types import MappingProxyType
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from trainer.picture_file import FAINT, INK
from trainer.planner.orders import Work
from trainer.planner.picture import Picture, in_unit, wrapped
from trainer.planner.prediction import GIB, StageMemory
from trainer.planner.timeline import Span, Timeline

BUBBLE, HATCH = "#e8eaed", "#b4bac1"
PURPOSES = MappingProxyType(
    {
        "weights": "#332288",
        "gradients": "#88ccee",
        "master": "#44aa99",
        "moments": "#117733",
        "activations": "#cc6677",
        "working": "#882255",
        "loss": "#aa4499",
        "buckets": "#ddcc77",
        "gathered": "#999933",
        "overhead": "#bbbbbb",
    }
)
"""A colour for each purpose of memory: Paul Tol's muted scheme (SRON/EPS/TN/09-002), which colour-blind readers can
tell apart."""
NAMES = MappingProxyType({"master": "master weights", "gathered": "gathered weights"})
WORKS = MappingProxyType(
    {
        Work.forward: ("forward", ("#77aadd", "#4477aa")),
        Work.backward: ("backward", ("#ee8866", "#cc5533")),
        Work.weights: ("gradients of weights", ("#44bb99", "#228866")),
    }
)
"""Name of each kind of pass, and the colours of a rank's first and further stages: Paul Tol's light scheme; darker."""
WHOLE_UP_TO = 40
"""Micro-batches whose timeline is always drawn whole."""
MANY_ROWS = 24
"""Ranks up to which a row has room for numbers and hatching."""
MOST_LABELS = 64
"""Ranks that have a label each."""
WIDTH, MARGIN = 13.0, 0.35
"""Inches."""
POINTS = 72.0
"""Points of a font's size in an inch."""


def draw(picture: Picture) -> Figure:
    """Return the drawing."""
    body = min(max(0.42 * len(picture.stages), 0.9), 9.6)
    lines = _headlines(picture)
    head, foot = lines[-1].below + 0.45, 1.5
    height = head + body + foot
    figure = Figure(figsize=(WIDTH, height))
    for line in lines:
        style: dict[str, Any] = {"weight": line.weight, "fontsize": line.size, "color": line.colour}
        family = "monospace" if line.is_layout else None
        figure.text(MARGIN / WIDTH, 1 - line.top / height, line.text, va="top", family=family, **style)
    windows = shown_windows(picture.timeline)
    lengths = [end - begin for begin, end in windows]
    grid = figure.add_gridspec(
        1,
        1 + len(windows),
        width_ratios=[5.0, *(7.2 * length / sum(lengths) for length in lengths)],
        left=0.075,
        right=1 - MARGIN / WIDTH,
        top=1 - head / height,
        bottom=foot / height,
        wspace=0.03,
    )
    # The column of numbers stands between the two halves.
    memory = figure.add_subplot(grid[0, 0])
    box = memory.get_position()
    memory.set_position((box.x0, box.y0, box.width - 0.115, box.height))
    _memory(memory, picture, foot)
    axes = [figure.add_subplot(grid[0, 1 + index]) for index in range(len(windows))]
    _timeline(axes, picture.timeline, windows, foot)
    return figure


@dataclass(frozen=True)
class _Line:
    """A line above the drawing, with its place in inches from the top."""

    text: str
    top: float
    size: float
    weight: str = "normal"
    colour: str = INK
    is_layout: bool = False

    @property
    def below(self) -> float:
        """Place of the next line, in inches from the top."""
        return self.top + 1.5 * self.size / POINTS


def _headlines(picture: Picture) -> list[_Line]:
    """Return title, layout and verdict in as many lines as they take."""
    found: list[_Line] = []
    parts: tuple[tuple[str, int, dict[str, Any]], ...] = (
        (picture.title, 105, {"size": 13.0, "weight": "bold"}),
        (picture.layout, 165, {"size": 8.5, "colour": FAINT, "is_layout": True}),
        (picture.verdict, 130, {"size": 10.5, "weight": "bold", "colour": picture.kind.value}),
    )
    top = 0.2
    for text, letters, style in parts:
        for line in wrapped(text, letters):
            found.append(_Line(line, top, **style))
            top = found[-1].below
        top += 0.05
    return found


def _rows(axes: Axes, rows: int) -> None:
    axes.set_ylim(rows - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _memory(axes: Axes, picture: Picture, foot: float) -> None:
    rows = len(picture.stages)
    largest = max(stage.peak for stage in picture.stages)
    unit, size = in_unit(largest)
    shown = [name for name in PURPOSES if any(stage.by_purpose[name] for stage in picture.stages)]
    _rows(axes, rows)
    step = math.ceil(rows / MOST_LABELS)
    labels = [f"stage {row}" for row in range(0, rows, step)]
    axes.set_yticks(range(0, rows, step), labels, fontsize=_small(rows))
    for row, stage in enumerate(picture.stages):
        _bar(axes, row, stage, shown, size)
    legend: list[Patch | Line2D] = [Patch(color=PURPOSES[name], label=NAMES.get(name, name)) for name in shown]
    if any(stage.peak > stage.backward for stage in picture.stages):
        legend.append(Patch(fill=False, edgecolor=INK, linestyle=":", label="peak of start or update"))
    limit = _capacity(axes, picture.device_bytes, size, largest / size)
    _numbers(axes, picture.stages, size, unit, step)
    axes.set_xlim(0, limit)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(f"memory of a device, {unit}")
    _legend(axes, legend, foot, columns=3)


def _bar(axes: Axes, row: int, stage: StageMemory, shown: Sequence[str], size: float) -> None:
    left = 0.0
    for name in shown:
        value = stage.by_purpose[name] / size
        if value:
            axes.barh(row, value, 0.72, left, color=PURPOSES[name], linewidth=0)
        left += value
    if stage.peak > stage.backward:
        more = (stage.peak - stage.backward) / size
        axes.barh(row, more, 0.72, left, fill=False, edgecolor=INK, linestyle=":", linewidth=0.9)


def _capacity(axes: Axes, device_bytes: int, size: float, largest: float) -> float:
    """Draw the device's capacity; return where the axis ends. A capacity far above all bars stands at its cut end."""
    capacity = device_bytes / size
    is_cut = capacity > 5 * largest
    limit = 1.6 * largest if is_cut else 1.05 * max(capacity, largest)
    place = 0.985 * limit if is_cut else capacity
    axes.axvline(place, color=INK, linewidth=1.6, linestyle=(0, (2, 2)) if is_cut else "-", zorder=3)
    if not is_cut and largest > capacity:
        axes.axvspan(capacity, limit, color="#ffdddd", zorder=0)
    words = f"device: {device_bytes / GIB:,.1f} GiB" + (", beyond this axis" if is_cut else "")
    axes.annotate(
        words,
        (place, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right" if place > 0.5 * limit else "left",
        va="bottom",
        weight="bold",
    )
    return limit


def _numbers(axes: Axes, stages: Sequence[StageMemory], size: float, unit: str, step: int) -> None:
    across = axes.get_yaxis_transform()
    small = _small(len(stages))
    fullest = max(range(len(stages)), key=lambda row: stages[row].peak)
    for place, header in ((1.17, f"peak\n{unit}"), (1.33, "in\nflight")):
        axes.annotate(
            header,
            (place, 1.0),
            xycoords="axes fraction",
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=small,
            color=FAINT,
            linespacing=1.0,
        )
    for row in range(0, len(stages), step):
        for place, number in ((1.17, f"{stages[row].peak / size:,.1f}"), (1.33, f"{stages[row].in_flight}")):
            weight = "bold" if row == fullest else "normal"
            axes.text(place, row, number, transform=across, ha="right", va="center", fontsize=small, weight=weight)


def _small(rows: int) -> float:
    """Return the size of labels that stand beside each row."""
    return 8.5 if rows <= 32 else 6.5


def _legend(axes: Axes, handles: Sequence[Patch | Line2D], foot: float, columns: int) -> None:
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    x = axes.get_position().x0
    figure.legend(
        handles=list(handles),
        loc="upper left",
        bbox_to_anchor=(x - 0.006, (foot - 0.55) / figure.get_figheight()),
        ncols=columns,
        frameon=False,
        handlelength=1.1,
        handleheight=0.9,
        columnspacing=1.3,
        borderaxespad=0,
        fontsize=8.5,
    )


def shown_windows(timeline: Timeline) -> list[tuple[float, float]]:
    """Return the parts of a timeline that are drawn, in seconds: all of it, or its first and its last part.

    Each part has the filling or the draining of the pipeline, and some micro-batches of the steady phase.
    """
    ranks, micro_batches = len(timeline.ranks), timeline.order.micro_batches
    one = max(timeline.busy) / micro_batches
    part = (ranks + 6) * one
    if micro_batches + ranks <= WHOLE_UP_TO or timeline.makespan <= 2.2 * part:
        return [(0.0, timeline.makespan)]
    return [(0.0, part), (timeline.makespan - part, timeline.makespan)]


@dataclass(frozen=True)
class _Box:
    """A rectangle of the timeline, in seconds."""

    row: int
    begin: float
    end: float
    span: Span | None
    """Its pass; None: the rank waits."""


def _boxes(timeline: Timeline, window: tuple[float, float]) -> Iterator[_Box]:
    """Yield what is seen in a window, waits too."""
    for row, spans in enumerate(timeline.ranks):
        at = 0.0
        for span in (*spans, None):
            begin = timeline.makespan if span is None else span.begin
            pieces: list[tuple[float, float, Span | None]] = [(at, begin, None)]
            if span is not None:
                pieces.append((span.begin, span.end, span))
                at = span.end
            for left, right, what in pieces:
                left, right = max(left, window[0]), min(right, window[1])
                if right - left > 1e-9 * timeline.makespan:
                    yield _Box(row, left, right, what)


def _timeline(axes: Sequence[Axes], timeline: Timeline, windows: Sequence[tuple[float, float]], foot: float) -> None:
    rows = len(timeline.ranks)
    name, scale = ("ms", 1e3) if timeline.makespan < 1 else ("s", 1.0)
    inches = (
        sum(one.get_position().width for one in axes) * WIDTH / (sum(end - begin for begin, end in windows) * scale)
    )
    works: set[tuple[Work, bool] | None] = set()
    for one, window in zip(axes, windows, strict=True):
        _rows(one, rows)
        one.set_yticks([])
        one.set_xlim(window[0] * scale, window[1] * scale)
        one.xaxis.set_major_locator(MaxNLocator(6 // len(axes) + 1, prune="upper" if one is not axes[-1] else None))
        works |= _passes(one, list(_boxes(timeline, window)), rows, scale, inches)
    if len(axes) > 1:
        _break(axes, windows, name, scale)
    kinds = []
    for each in sorted(work for work in works if work is not None):
        work, is_further = each
        label = WORKS[work][0] + (" of a further stage" if is_further else "")
        kinds.append(Patch(color=WORKS[work][1][is_further], label=label))
    if None in works:
        hatch = "////" if rows <= MANY_ROWS else None
        label = "bubble: the rank waits"
        kinds.append(Patch(facecolor=BUBBLE, edgecolor=HATCH, hatch=hatch, linewidth=0, label=label))
    _legend(axes[0], kinds, foot, columns=3)
    axes[0].annotate(
        f"one step: {timeline.order.micro_batches} micro-batches, {timeline.makespan * scale:,.3g} {name} "
        f"before the optimizer; bubble {100 * timeline.idle_fraction:.1f} % of all ranks' time",
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 3 if len(axes) == 1 else 10),
        textcoords="offset points",
        va="bottom",
        weight="bold",
    )
    axes[0].set_xlabel(f"time, {name}", loc="left")


def _passes(axes: Axes, boxes: Sequence[_Box], rows: int, scale: float, inches: float) -> set[tuple[Work, bool] | None]:
    """Draw rectangles, one collection for each row and colour.

    Returns the kinds of passes among them, each with whether it is of a further stage of its rank; None for waits.

    Args:
        axes: one part of the timeline.
        boxes: what is seen in it.
        rows: number of ranks.
        scale: units of the axis in a second.
        inches: width of a unit of the axis.
    """
    drawn: dict[tuple[int, str], list[tuple[float, float]]] = {}
    works: set[tuple[Work, bool] | None] = set()
    # Numbers all have room, or none has.
    digits = max(len(str(box.span.what.micro_batch)) for box in boxes if box.span is not None)
    size = 7 if digits < 3 else 6
    for box in boxes:
        colour, width = BUBBLE, (box.end - box.begin) * scale
        kind = None
        if box.span is not None:
            work, stage, number = box.span.what
            kind = (work, stage >= rows)
            colour = WORKS[work][1][kind[1]]
            if rows <= MANY_ROWS and width * inches > 0.0115 * size * digits:
                ink = "white" if kind[1] else "black"
                middle = box.begin * scale + width / 2
                axes.text(middle, box.row, str(number), ha="center", va="center", fontsize=size, color=ink)
        works.add(kind)
        drawn.setdefault((box.row, colour), []).append((box.begin * scale, width))
    height = 0.72 if rows <= MANY_ROWS else 0.84
    narrow = mean(box.end - box.begin for box in boxes) * scale * inches < 0.05
    for (row, colour), bars in drawn.items():
        style: dict[str, Any] = {"linewidth": 0.0 if narrow else 0.4, "edgecolor": "white"}
        if colour == BUBBLE:
            style = {"linewidth": 0.0, "edgecolor": HATCH, "hatch": "////" if rows <= MANY_ROWS else None}
        axes.broken_barh(bars, (row - height / 2, height), facecolor=colour, **style)
    return works


def _break(axes: Sequence[Axes], windows: Sequence[tuple[float, float]], name: str, scale: float) -> None:
    """Mark that the middle is left out."""
    for one, side in zip(axes, (1, 0), strict=True):
        for level in (0, 1):
            one.plot([side], [level], marker=[(-1, -2), (1, 2)], markersize=9, color=INK, mew=1.2,
                     transform=one.transAxes, clip_on=False, zorder=5)  # fmt: skip
    hidden = (windows[1][0] - windows[0][1]) * scale
    axes[1].set_xlabel(f"{hidden:,.3g} {name} between // are left out", loc="right", color=FAINT)
