from __future__ import annotations

import importlib.util
import itertools
import xml.etree.ElementTree as ET
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from matplotlib import rc_context, rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from trainer.errors import ConfigError
from trainer.picture_file import STYLE, check_picture
from trainer.planner.orders import Order, deepspeed_1f1b, dualpipev, interleaved_1f1b, one_forward_one_backward
from trainer.planner.picture import Picture, Verdict, write_picture
from trainer.planner.picture_parts import PURPOSES, draw, shown_windows
from trainer.planner.prediction import GIB, StageMemory
from trainer.planner.timeline import Costs, simulate

LAYOUT = (
    "layout.pipeline_parallel_size=64 layout.tensor_parallel_size=8 layout.data_parallel_size=16 zero.stage=1 "
    "layout.sequence_parallel=true zero.offload=none batch.micro_batch_size=2 batch.global_batch_size=16384 "
    "model.recompute=selective precision=bf16"
)


def memory(rank: int, in_flight: int) -> StageMemory:
    return StageMemory(
        weights=3 * GIB,
        gradients=5 * GIB,
        master=2 * GIB,
        moments=3 * GIB,
        activations=in_flight * GIB,
        working=GIB,
        loss=4 * GIB if rank == 0 else 0,
        buckets=2 * GIB,
        gathered=GIB,
        overhead=3 * GIB,
        init_peak=4 * GIB,
        step_peak=40 * GIB if rank == 0 else 0,
        host=0,
        in_flight=in_flight,
    )


def picture(order: Order, *, device_gib: float = 79.2, message: float = 0.002, second: float = 1.0) -> Picture:
    timeline = simulate(order, Costs.equal(order.stages, 0.031 * second, 0.062 * second, message * second))
    in_flight = order.in_flight
    return Picture(
        title="gpt3_13b, 12.9B parameters, on 64 x A100-80GB",
        layout=LAYOUT,
        verdict="Fits: the fullest is stage 0 with 41.2 of 79.2 GiB (52 %), margin 38.0 GiB",
        kind=Verdict.fits,
        stages=[memory(rank, in_flight[rank]) for rank in range(len(order.ranks))],
        device_bytes=int(device_gib * GIB),
        timeline=timeline,
    )


PICTURES = {
    "one stage": picture(one_forward_one_backward(1, 4)),
    "four": picture(deepspeed_1f1b(4, 8)),
    "long": picture(one_forward_one_backward(4, 512)),
    "64 stages": picture(deepspeed_1f1b(64, 512)),
    "two stages a rank": picture(dualpipev(8, 16)),
    "chunks": picture(interleaved_1f1b(4, 8, 3)),
    "does not fit": picture(deepspeed_1f1b(4, 8), device_gib=16),
    "hardly seen": picture(deepspeed_1f1b(4, 8), device_gib=4000),
    "wordy": replace(
        picture(deepspeed_1f1b(4, 8)),
        title="a model whose name is long " * 6,
        layout=f"{LAYOUT} {LAYOUT}",
        verdict="It does not fit because of one thing and another, and there are several changes that would help. " * 2,
        kind=Verdict.refused,
    ),
    "milliseconds": picture(deepspeed_1f1b(2, 3), second=1e-3),
}


def drawn(what: Picture) -> Figure:
    style: dict[Any, Any] = {**STYLE}
    with rc_context(style):
        figure = draw(what)
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
    return figure


def words(figure: Figure) -> list[tuple[str, Bbox]]:
    """All texts with their places."""
    canvas: Any = figure.canvas
    texts = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        (low, high), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        ticks = [label for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
        ticks += [label for label in axes.get_yticklabels() if top <= label.get_position()[1] <= bottom]
        texts += [axes.xaxis.label, *axes.texts, *ticks]
    renderer = canvas.get_renderer()
    return [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text()]


@pytest.mark.parametrize("name", list(PICTURES))
def test_no_word_lies_on_another_or_outside(name: str) -> None:
    figure = drawn(PICTURES[name])
    found = words(figure)
    page = figure.bbox
    for text, box in found:
        assert page.x0 <= box.x0, text
        assert box.x1 <= page.x1, text
        assert page.y0 <= box.y0, text
        assert box.y1 <= page.y1, text
    # Numbers of micro-batches are too many to compare all.
    headings = [(text, box) for text, box in found if not text.isdigit()]
    for (one, first), (other, second) in itertools.combinations(headings, 2):
        assert not (
            first.x0 < second.x1 - 1
            and second.x0 < first.x1 - 1
            and first.y0 < second.y1 - 1
            and second.y0 < first.y1 - 1
        ), f"{one!r} lies on {other!r}"


def test_it_tells_model_layout_verdict_and_capacity() -> None:
    texts = " ".join(text.replace("\n", " ") for text, _ in words(drawn(PICTURES["four"])))
    what = PICTURES["four"]
    assert what.title in texts
    assert what.layout in texts
    assert what.verdict in texts
    assert "device: 79.2 GiB" in texts
    assert f"bubble {100 * what.timeline.idle_fraction:.1f} % of all ranks' time" in texts
    for name in ("weights", "master weights", "activations", "gathered weights", "peak of start or update"):
        assert name in texts
    for stage in what.stages:
        assert f"{stage.peak / GIB:.1f}" in texts


def test_bars_add_up_to_the_bytes() -> None:
    what = PICTURES["four"]
    bars: list[Any] = [bar for bar in drawn(what).axes[0].patches if bar.get_fill()]
    colours: dict[str, float] = {}
    for bar in bars:
        colour = to_hex(bar.get_facecolor())
        colours[colour] = colours.get(colour, 0) + bar.get_width()
    for name, colour in PURPOSES.items():
        expected = sum(stage.by_purpose[name] for stage in what.stages) / GIB
        assert colours[colour] == pytest.approx(expected), name


def test_a_capacity_that_is_exceeded_is_seen() -> None:
    axes = drawn(PICTURES["does not fit"]).axes[0]
    assert axes.get_xlim()[1] > 40
    lines: list[Any] = [line.get_xdata() for line in axes.lines]
    assert [line[0] for line in lines] == [pytest.approx(16)]


def test_a_capacity_far_away_does_not_squeeze_the_bars() -> None:
    figure = drawn(PICTURES["hardly seen"])
    assert figure.axes[0].get_xlim()[1] < 2 * 40
    assert "device: 4,000.0 GiB, beyond this axis" in [text for text, _ in words(figure)]


def test_a_long_step_is_shown_from_both_ends() -> None:
    whole = PICTURES["four"].timeline
    assert shown_windows(whole) == [(0.0, whole.makespan)]
    long = PICTURES["long"].timeline
    (begin, first), (second, end) = shown_windows(long)
    assert (begin, end) == (0.0, long.makespan)
    assert 0 < first < second < end
    # All of the filling and of the draining is there: every rank computes without a wait where it is cut.
    assert first > max(spans[0].begin for spans in long.ranks) + 4 * 0.093
    assert second < min(spans[-1].end for spans in long.ranks) - 4 * 0.093
    assert len(drawn(PICTURES["long"]).axes) == 3


def test_what_is_drawn_of_a_step_is_its_work_and_its_waits() -> None:
    what = PICTURES["four"]
    axes = drawn(what).axes[1]
    area = 0.0
    for collection in axes.collections:
        for path in collection.get_paths():
            box = path.get_extents()
            area += box.width
    assert area == pytest.approx(len(what.stages) * what.timeline.makespan, rel=1e-6)


def test_files_are_written_whole_and_alike(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg", "one.png"):
        check_picture(tmp_path / name)
        write_picture(PICTURES["four"], tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    root = ET.fromstring((tmp_path / "one.svg").read_bytes())
    assert root.tag.endswith("svg")
    assert b"<dc:date>" not in (tmp_path / "one.svg").read_bytes()
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"one.svg", "two.svg", "one.png"}
    other = replace(PICTURES["four"], title="another")
    write_picture(other, tmp_path / "two.svg")
    assert (tmp_path / "one.svg").read_bytes() != (tmp_path / "two.svg").read_bytes()


def test_settings_of_the_users_matplotlib_change_nothing(tmp_path: Path) -> None:
    write_picture(PICTURES["one stage"], tmp_path / "one.svg")
    with rc_context({"font.size": 30, "axes.facecolor": "black", "svg.fonttype": "none"}):
        write_picture(PICTURES["one stage"], tmp_path / "two.svg")
        assert rcParams["font.size"] == 30
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        check_picture(path)
    assert len(caught.value.problems) == 1
    assert "\n" not in caught.value.problems[0]
    return caught.value.problems[0]


@pytest.mark.parametrize("name", ["plan.pdf", "plan", "plan.svg.gz", ".svg"])
def test_another_suffix_is_refused(tmp_path: Path, name: str) -> None:
    assert refusal(tmp_path / name).startswith(
        f"--picture must end in .svg or .png, but is {tmp_path / name}; use for "
    )


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none" / "plan.svg") == (
        f"--picture must be in a folder that exists, but {tmp_path / 'none'} is none; make it, or name another one"
    )
    (tmp_path / "file").touch()
    assert "is none" in refusal(tmp_path / "file" / "plan.svg")


def test_a_folder_of_that_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.svg").mkdir()
    assert refusal(tmp_path / "plan.svg") == (
        f"--picture must name a file, but {tmp_path / 'plan.svg'} is a folder; name a file in it"
    )


def test_a_folder_that_cannot_be_written_is_refused() -> None:
    assert refusal(Path("/proc/plan.svg")).startswith(
        "--picture must be in a folder that can be written, but /proc cannot"
    )


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "matplotlib" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert refusal(tmp_path / "plan.svg") == (
        "--picture needs the package matplotlib, but it is not installed; use pip install 'trident-trainer[plots]'"
    )
    assert list(tmp_path.iterdir()) == []
