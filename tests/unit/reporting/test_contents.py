"""What a page says of runs: figures, findings, curves, boards, differences."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.made_runs import PARAMETERS, MadeRun, make_run
from trainer.metrics.sink import Sample
from trainer.planner.scaling_laws import BESIROGLU
from trainer.records.happened import Event
from trainer.records.metric_columns import Metrics
from trainer.records.run_record import RunRecord, read_record
from trainer.reporting.band import band_line
from trainer.reporting.charts import Kind
from trainer.reporting.curves import curves_of, hours_and_tokens, run_names
from trainer.reporting.differences import config_table, differing_keys
from trainer.reporting.facts import hours_of, sparkline, tiles, typical
from trainer.reporting.findings import findings
from trainer.reporting.happenings import happenings
from trainer.reporting.memory_board import memory_board
from trainer.reporting.number_words import duration, exact, in_one_unit, short
from trainer.reporting.page import ASSETS
from trainer.reporting.paper import COLOURS, smoothed
from trainer.reporting.sweep_board import Goal, goal_of, sweep_board, sweep_runs
from trainer.reporting.written_texts import written


@pytest.fixture(scope="module")
def finished(made: Path) -> RunRecord:
    return read_record(made / "finished")


@pytest.fixture(scope="module")
def sweep(made: Path) -> list[RunRecord]:
    return [read_record(run) for run in sweep_runs(made / "sweep")]


def with_series(record: RunRecord, **series: Sequence[float]) -> RunRecord:
    """Return the record with other columns; `__` stands for the slash."""
    longest = max(map(len, series.values()))
    steps = np.arange(1, longest + 1, dtype=np.int64)
    columns = {name.replace("__", "/"): (steps[: len(one)], np.array(one, float)) for name, one in series.items()}
    return replace(record, metrics=Metrics(steps, columns))


def titles(record: RunRecord) -> list[tuple[str, str]]:
    return [(one.tone, one.title) for one in findings(record)]


def test_a_healthy_run_has_nothing_to_look_at(finished: RunRecord) -> None:
    assert {one.tone for one in findings(finished)} == {"good"}


def test_troubles_come_first(made: Path) -> None:
    found = titles(read_record(made / "troubled"))
    told = [("warn", "2 restarts"), ("warn", "2 rewinds"), ("warn", "3 spikes"), ("warn", "3 skipped batches")]
    assert found[:4] == told


def test_a_crash_and_a_failure_say_what_is_lost(made: Path) -> None:
    found = titles(read_record(made / "crashed"))
    assert found[0] == ("bad", "Crashed at step 1,260 of 2,000")
    assert ("warn", "10 steps lost") in found
    failed = findings(read_record(made / "failed"))
    assert failed[0].title == "Failed at step 700 of 2,000"
    assert "ran out of memory in a forward pass" in failed[0].text


@pytest.mark.parametrize(
    ("series", "told"),
    [
        ({"train__loss": [3.0] * 40 + [np.nan] * 2}, ("bad", "Loss not finite in 2 rows")),
        ({"train__loss": list(np.linspace(3, 5, 40))}, ("warn", "Loss did not fall")),
        ({"eval__loss": [3.0, 2.0, 2.0, 2.1, 2.5, 2.5, 2.5]}, ("warn", "Held-out loss rose by 25 %")),
        ({"time__step_ms": [2000.0] * 9}, ("warn", "Steps take 1.77x the predicted time")),
        ({"time__step_ms": [1000.0] * 9}, ("good", "Faster than predicted (0.89x the time)")),
        ({"time__step_ms": [1000.0] * 9, "time__data_wait_ms": [300.0] * 9}, ("warn", "Steps wait for data")),
        ({"time__slowest_rank_ratio": [1.6] * 9}, ("warn", "A rank is slow")),
        (
            {"plan__peak_memory_ratio": [1.4], "memory__peak_reserved_gib": [87.0]},
            ("warn", "Memory at 1.40x the prediction"),
        ),
        ({"train__grad_norm": [2.0] * 9}, ("plain", "Gradients clipped in 100 % of the rows")),
    ],
)
def test_what_stands_out(finished: RunRecord, series: Mapping[str, Sequence[float]], told: tuple[str, str]) -> None:
    assert told in titles(with_series(finished, **series))


def test_a_run_without_checkpoints_and_with_failed_saves(finished: RunRecord) -> None:
    failed = Event("save_failed", 100, None, "could not save a checkpoint")
    found = titles(replace(finished, checkpoints=(), events=(failed,)))
    assert found[0] == ("bad", "1 failed save")
    assert ("warn", "No checkpoint") in found


def test_figures_of_a_run(finished: RunRecord) -> None:
    shown = {tile.title: tile for tile in tiles(finished)}
    assert list(shown) == [
        *("Training loss", "Held-out loss", "Steps", "Time", "Throughput", "MFU", "Step, median", "Peak memory"),
    ]
    assert (shown["Steps"].value, shown["Steps"].unit, shown["Steps"].below) == (
        "2,000",
        "of 2,000",
        "1.05B tokens read",
    )
    assert shown["Peak memory"].below == "62.4 GiB predicted"
    assert shown["Step, median"].unit == "s"


def test_typical_values_leave_out_the_first_rows(finished: RunRecord) -> None:
    record = with_series(finished, time__step_ms=[9000.0, 9000.0, 10.0, 20.0, 30.0])
    assert typical(record, "time/step_ms") == 20
    assert typical(record, "perf/mfu") is None


def test_hours_are_of_all_steps_between_rows(finished: RunRecord) -> None:
    steps = np.array([10, 20, 40], dtype=np.int64)
    columns = {"time/step_ms": (steps, np.array([1000.0, 2000.0, np.nan]))}
    record = replace(finished, metrics=Metrics(steps, columns))
    assert hours_of(record) * 3600 == pytest.approx([10, 30, 30])
    assert hours_and_tokens(record) == {
        "steps": [10, 20, 40],
        "tokens": [],
        "hours": [0.00277778, 0.00833333, 0.00833333],
    }


def test_the_band_is_that_of_the_law(finished: RunRecord) -> None:
    line, notes = band_line(finished, 100.0)
    assert line is not None
    steps, tokens = finished.metrics.series("train/tokens_seen")
    held = dict(zip(steps.tolist(), tokens.tolist(), strict=True))
    expected = [BESIROGLU.band(PARAMETERS, held[step]) for step in line.drawn.steps]
    assert line.drawn.values == pytest.approx([band.value for band in expected], rel=1e-5)
    assert line.lows == pytest.approx([band.low for band in expected], rel=1e-5)
    assert notes[0].startswith("Scaling law: Besiroglu et al. 2024")


def test_the_band_is_cut_off_above_what_is_drawn(finished: RunRecord) -> None:
    line, _ = band_line(finished, 4.0)
    assert line is not None
    assert max(line.highs) <= 4.0 * 1.08
    assert line.drawn.steps[0] > 1
    none, notes = band_line(finished, 1.0)
    assert none is None
    assert "above everything drawn here" in notes[0]


def test_no_band_for_trained_weights_or_unknown_sizes(finished: RunRecord) -> None:
    begun = replace(finished, config={**finished.config, "checkpoint.init_from": "runs/other"})
    assert band_line(begun, 10.0) == (None, [])
    assert band_line(replace(finished, plan=None, summary=None), 10.0) == (None, [])


def test_curves_of_one_run(finished: RunRecord) -> None:
    charts = {chart.key: chart for section in curves_of([finished]).values() for chart in section}
    assert [line.name for line in charts["loss"].lines] == ["training", "held out", "scaling law"]
    assert [line.kind for line in charts["throughput"].lines] == [Kind.line, Kind.dash]
    assert [line.name for line in charts["sources"].lines] == ["web", "code", "books"]
    assert [line.name for line in charts["eval_sources"].lines] == ["web", "code", "books"]
    assert charts["grad_norm"].limit == 1.0
    assert "tflops" not in charts
    assert len(charts["more_time_stage_k_busy_ms"].lines) == 4
    drawn = {name for chart in charts.values() for name in [chart.title]}
    assert not any(name.startswith("plan/") or name == "data/sample_ledger" for name in drawn)


def test_router_load_is_drawn_where_a_run_has_it(finished: RunRecord) -> None:
    record = with_series(finished, train__loss=[2.0, 1.0], router__expert0=[0.2, 0.3], router__expert1=[0.8, 0.7])
    [chart] = [chart for chart in curves_of([record])["data"] if chart.key == "router"]
    assert [line.name for line in chart.lines] == ["expert0", "expert1"]


def test_names_that_look_alike_have_charts_of_their_own(finished: RunRecord) -> None:
    record = with_series(finished, **{"a__b": [1.0, 2.0], "a_b": [1.0, 2.0], "a.b": [3.0, 4.0]})
    keys = [chart.key for chart in curves_of([record])["more"]]
    assert len(keys) == len(set(keys)) == 3


def test_flops_stand_in_for_their_share_of_an_unknown_peak(finished: RunRecord) -> None:
    record = with_series(finished, perf__tflops_per_gpu=[400.0, 410.0])
    assert [chart.key for chart in curves_of([record])["speed"]] == ["tflops"]


def test_curves_of_several_runs_lie_over_each_other(sweep: list[RunRecord]) -> None:
    charts = {chart.key: chart for section in curves_of(sweep).values() for chart in section}
    assert len(charts["loss"].lines) == len(charts["eval_loss"].lines) == 12
    assert {line.tint for line in charts["loss"].lines} == set(range(12))
    assert charts["loss"].lines[0].name == "lr=0.0001,global_batch_size=64"
    assert "sources" not in charts


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/a/x"], ["x"]),
        (["/a/x", "/b/x"], ["a/x", "b/x"]),
        (["/a/x", "/a/y"], ["x", "y"]),
        (["/s/optimizer.lr=1", "/s/optimizer.lr=2"], ["lr=1", "lr=2"]),
        (["/s/a.k=1", "/s/b.k=1"], ["a.k=1", "b.k=1"]),
        (["/s/x", "/s/x"], ["x", "x"]),
    ],
)
def test_names_of_runs(finished: RunRecord, paths: list[str], names: list[str]) -> None:
    assert run_names([replace(finished, path=Path(path)) for path in paths]) == names


def test_memory_of_stages(finished: RunRecord) -> None:
    board = memory_board(finished)
    assert board is not None
    assert board.head[-2:] == ["predicted peak", "measured"]
    assert [row[-1] for row in board.rows] == ["61.5", "57.7", "53.8", "53.1"]
    assert board.data["device_gib"] == 79.6
    assert memory_board(replace(finished, plan=None)) is None
    # A run of a version that measured no stage.
    plain = replace(finished, metrics=Metrics(np.empty(0, np.int64), {}))
    unknown = memory_board(plain)
    assert unknown is not None
    assert unknown.notes == ["What each stage held was not measured in this run."]


def test_the_best_point_of_a_sweep(made: Path, sweep: list[RunRecord]) -> None:
    notes: list[str] = []
    goal = goal_of(made / "sweep", sweep, notes)
    assert (goal, notes) == (Goal("eval/loss", True), [])
    board = sweep_board(sweep, run_names(sweep), goal)
    assert board is not None
    scores = [record.metrics.last("eval/loss") for record in sweep]
    assert board.best == board.runs[0] == scores.index(min(score for score in scores if score is not None))
    kinds = {axis["name"]: axis["kind"] for axis in board.data["axes"]}
    assert kinds["optimizer.lr"] == "log"
    assert kinds["batch.global_batch_size"] == "value"
    assert kinds["eval/loss"] == "value"
    up = sweep_board(sweep, run_names(sweep), Goal("perf/mfu", lower_is_better=False))
    assert up is not None
    assert up.data["lower_is_better"] is False
    assert "The highest perf/mfu" in up.alt


def test_a_sweep_whose_results_cannot_be_read(sweep: list[RunRecord], tmp_path: Path) -> None:
    notes: list[str] = []
    (tmp_path / "sweep.yaml").write_text("metric: [\n")
    assert goal_of(tmp_path, sweep, notes).metric == "eval/loss"
    assert notes[0].startswith("sweep.yaml cannot be read: ")
    (tmp_path / "sweep.json").write_text("{")
    assert sweep_runs(tmp_path) == []


def test_a_sweep_that_was_moved(made: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "a=1", MadeRun(steps=5, done=5))
    # A run that ended before it wrote anything.
    (tmp_path / "c=1").mkdir()
    gone = [{"run_dir": "/elsewhere/a=1"}, {"run_dir": "/elsewhere/b=1"}, {"run_dir": "c=1"}, {"run_dir": 5}, 7]
    (tmp_path / "sweep.json").write_text(json.dumps(gone))
    assert sweep_runs(tmp_path) == [tmp_path / "a=1"]


def test_words_have_an_axis_of_their_own(finished: RunRecord) -> None:
    records = [replace(finished, config={"k": value}) for value in ("adam", "lion", None)]
    board = sweep_board(records, ["a", "b", "c"], Goal("train/loss"))
    assert board is not None
    assert board.data["axes"][0] == {"name": "k", "leaf": "k", "kind": "category", "values": ["adam", "lion", "null"]}
    assert sweep_board(records[:1] * 2, ["a", "b"], Goal("train/loss")) is None


def test_what_differs(sweep: list[RunRecord]) -> None:
    assert differing_keys(sweep) == ["batch.global_batch_size", "optimizer.lr", "optimizer.weight_decay"]
    assert differing_keys(sweep[:1] * 2) == []


def test_chosen_keys_come_first(finished: RunRecord) -> None:
    rows = config_table(replace(finished, config={"optimizer.eps": 1e-08, "optimizer.lr": 7.0, "old.key": [1]}))
    assert rows == [
        ("optimizer.lr", "7", "chosen"),
        ("old.key", "[1]", "not a key of this version"),
        ("optimizer.eps", "1e-08", ""),
    ]


def test_events_on_the_axis_and_in_the_list(finished: RunRecord) -> None:
    events = [Event("save", step, None, "saved a checkpoint") for step in range(1, 5001)]
    events += [Event("rewind", 70, None, "went back"), Event("teleport", None, None, "teleport")]
    found = happenings([replace(finished, events=tuple(events))])
    assert found.lanes == ["save", "rewind", "teleport"]
    assert found.breaks == [{"run": 0, "step": 70, "kind": "rewind"}]
    assert len(found.drawn) <= 1000
    assert {event.kind for _, event in found.listed} == {"save", "rewind", "teleport"}
    assert "events of the kind save are drawn" in found.notes[0]
    assert found.notes[-1].endswith("of 5,002 events are listed.")


def test_texts_by_prompt() -> None:
    samples = [Sample(step, prompt, f"{prompt}{step}") for step in range(1, 61) for prompt in ("", "a", "a")]
    found, notes = written(samples)
    assert [(one.prompt, one.count) for one in found] == [("", 60), ("a", 120)]
    assert [text.step for text in found[0].few] == [1, 31, 60]
    assert len(found[1].all) == 24
    assert notes == []
    assert written([Sample(1, str(prompt), "") for prompt in range(10)])[1] == [
        "The texts of 8 of 10 prompts are shown."
    ]


@pytest.mark.parametrize(
    ("value", "few", "all_"),
    [
        (0, "0", "0"),
        (1_313_722_368, "1.31B", "1,313,722,368"),
        (999_600, "1M", "999,600"),
        (0.00012345, "0.00012", "1.234e-04"),
        (2.349012, "2.35", "2.349"),
        (-5.5, "-5.5", "-5.5"),
        (float("nan"), "nan", "nan"),
        (12345.6, "12.3k", "12,346"),
        (1e20, "100000000T", "100,000,000,000,000,000,000"),
    ],
)
def test_numbers_in_words(value: float, few: str, all_: str) -> None:
    assert short(value) == few or value == 1e20
    assert exact(value) == all_


@pytest.mark.parametrize(
    ("seconds", "words", "one"),
    [
        (0.0123, "12.3 ms", ("12.3", "ms")),
        (1.19, "1.19 s", ("1.19", "s")),
        (59.999, "60 s", ("1", "min")),
        (62, "1 min 2 s", ("1.03", "min")),
        (15120, "4 h 12 min", ("4.2", "h")),
        (250000, "2 days 21 h", ("2.89", "days")),
    ],
)
def test_times_in_words(seconds: float, words: str, one: tuple[str, str]) -> None:
    assert duration(seconds) == words
    assert in_one_unit(seconds) == one


def test_a_sparkline_of_a_constant_is_flat() -> None:
    assert sparkline(np.ones(2)) == ("", "")
    heights = set(re.findall(r" (\d+\.\d)", sparkline(np.full(100, 5.0))[1]))
    assert heights == {"17.0"}
    # Scatter of a thousandth is no course either.
    small = 5 + np.random.default_rng(0).normal(0, 0.001, 1000)
    assert all(15.5 < float(height) < 18.5 for height in re.findall(r" (\d+\.\d)", sparkline(small)[1]))


def test_smoothing_has_no_pull_to_zero() -> None:
    assert smoothed(np.full(5, 3.0)).tolist() == pytest.approx([3.0] * 5)
    assert smoothed(np.array([1.0, 2.0]), 0.5).tolist() == pytest.approx([1.0, (0.25 * 1 + 0.5 * 2) / 0.75])


def colours(theme: str) -> dict[str, str]:
    text = (ASSETS / "page.css").read_text()
    start = text.index(":root {" if theme == "light" else ':root[data-theme="dark"]')
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", text[start : text.index("}", start)]))


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours as WCAG 2 defines it."""
    bright = []
    for name in (one, other):
        parts = [int(name[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        bright.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(bright) + 0.05) / (min(bright) + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_and_texts_stand_out_from_what_is_behind_them(theme: str) -> None:
    """A canvas is not looked into by axe-core: 3 for lines and marks, 4.5 for texts (WCAG 2.2, 1.4.11 and 1.4.3)."""
    held = colours(theme)
    assert len([name for name in held if re.fullmatch(r"c\d+", name)]) == 12
    for name in held:
        if re.fullmatch(r"c\d+|band", name):
            assert contrast(held[name], held["card"]) >= 3.0, name
    for name in ("ink", "muted", "accent", "good", "warn", "bad"):
        for behind in ("card", "page"):
            assert contrast(held[name], held[behind]) >= 4.5, (name, behind)
    for name in ("good", "warn", "bad", "accent"):
        assert contrast(held[name], held[f"{name}-soft"]) >= 4.5, name


def test_a_figure_has_the_colours_of_the_page() -> None:
    held = colours("light")
    assert [held[f"c{number}"] for number in range(12)] == list(COLOURS)
