from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.metrics.console_fixtures import ASCII, UNICODE, console_of, play, seen
from trainer.config.plan import RunPlan
from trainer.log import say
from trainer.loop.events import RunEnd, StepReport
from trainer.metrics.live import LiveSink
from trainer.metrics.live_view import sparks
from trainer.metrics.pace import Pace
from trainer.metrics.screen import TrainingConsole
from trainer.metrics.sink import Row

STAGES: Row = {"memory/stage0/peak_allocated_gib": 61.3, "memory/stage1/peak_allocated_gib": 59.75}


@pytest.fixture
def full_row(row: Row) -> Row:
    return {**row, **STAGES, "perf/mfu": 0.4321, "time/step_ms": 511.2}


def view(
    plan: RunPlan, row: Row | None, report: StepReport, width: int = 80, environ: dict[str, str] | None = None
) -> list[str]:
    """Return the lines of the live view after step 5 of 10."""
    sink = LiveSink(plan, Path("runs/tiny"), "NVIDIA H100", {}, console_of(io.StringIO(), True, width, environ))
    sink.start(1)
    for step in range(1, 6):
        if row is not None:
            sink.advance(step)
            sink.write({**row, "train/loss": 6.0 - step}, replace(report, step=step, loss=6.0 - step))
    plain = io.StringIO()
    console_of(plain, width=width, environ=environ).print(sink._view())
    sink.end(RunEnd("stopped", 5, 1.0))
    return [line.rstrip() for line in plain.getvalue().splitlines()]


def test_the_view_in_eighty_columns(plan: RunPlan, full_row: Row, report: StepReport) -> None:
    blank, progress, *facts = view(plan, full_row, report)
    assert blank == ""
    assert progress.startswith("step 5 of 10  ━━━")
    assert progress.endswith("  eta 0m00s")
    assert len(progress) == 80
    assert facts == [
        "loss    1.0000   █▆▅▃▁   grad norm 0.750",
        "speed   12.3k tokens/s   MFU 43.2%   1.50 TFLOP/s a GPU   511 ms a step",
        "memory  stage 0: 61.3   stage 1: 59.8 GiB",
    ]


def test_what_was_predicted_has_a_line_of_its_own(plan: RunPlan, full_row: Row, report: StepReport) -> None:
    planned: Row = {
        "plan/step_ms": 498.0,
        "plan/step_ms_ratio": 1.0265,
        "plan/peak_memory_gib": 58.25,
        "plan/peak_memory_ratio": 1.052,
    }
    lines = view(plan, {**full_row, **planned}, report)
    assert lines[-1] == "plan    step 1.03 x the predicted 498 ms   memory 1.05 x 58.25 GiB"
    extreme = dict.fromkeys(planned, 123456789.0)
    assert max(map(len, view(plan, {**full_row, **extreme}, report))) <= 80


def test_the_view_in_ascii(plan: RunPlan, full_row: Row, report: StepReport) -> None:
    _, progress, *facts = view(plan, full_row, report, environ=ASCII)
    assert progress.startswith("step 5 of 10  -----")
    assert facts[0] == "loss    1.0000   grad norm 0.750"
    assert all(line.isascii() for line in (progress, *facts))


@pytest.mark.parametrize("width", [20, 30, 40, 60, 200])
@pytest.mark.parametrize("environ", [ASCII, UNICODE], ids=["ascii", "unicode"])
def test_a_narrow_or_wide_terminal_gets_what_fits(
    width: int, environ: dict[str, str], plan: RunPlan, full_row: Row, report: StepReport
) -> None:
    lines = view(plan, full_row, report, width, environ)
    assert len(lines) == 5, "nothing may be wrapped"
    assert max(map(len, lines)) <= min(width, 80)
    assert lines[1].startswith("step 5 of 10")
    assert lines[2].startswith("loss    1.0000")
    assert lines[3].startswith("speed   12.3k")


def test_a_pipeline_that_is_too_long_for_a_line_shows_most_and_least(
    plan: RunPlan, row: Row, report: StepReport
) -> None:
    long = replace(plan, mesh=replace(plan.mesh, pipeline_parallel_size=16))
    stages = {f"memory/stage{k}/peak_allocated_gib": 30.0 + (k * 7) % 16 for k in range(16)}
    assert view(long, {**row, **stages, "time/step_ms": 1.0}, report)[-1] == (
        "memory  45.0 GiB in stage 9   30.0 GiB in stage 0"
    )


def test_without_stages_it_is_the_fullest_rank(plan: RunPlan, row: Row, report: StepReport) -> None:
    alone = replace(plan, mesh=replace(plan.mesh, pipeline_parallel_size=1))
    assert view(alone, {**row, "time/step_ms": 1.0}, report)[-1] == "memory  fullest rank 1.2 GiB"


def test_before_the_first_step_it_says_so(plan: RunPlan, report: StepReport) -> None:
    _, progress, fact = view(plan, None, report)
    assert progress.startswith("step 0 of 10")
    assert progress.endswith("eta -")
    assert fact == "loss    the first step is under way"


def test_what_remains_on_the_terminal(plan: RunPlan, full_row: Row, report: StepReport) -> None:
    text = play(LiveSink, plan, full_row, replace(report, eval_loss=3.5), terminal=True)
    assert "\x1b[?25l" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor must come back"
    lines = seen(text)
    assert "step 1: eval loss 3.5000" in lines
    last = max(index for index, line in enumerate(lines) if line.startswith("step 10 of 10"))
    assert lines[last].endswith("done")
    assert lines[last + 1].startswith("loss    1.0000")
    assert any(line.startswith("loss 10.0000 at step 1, 1.0000 at step 10") for line in lines[last:])
    assert not any(line.split()[:2] == ["step", "loss"] for line in lines), "no lines of steps beside the view"
    assert max(map(len, lines)) <= 80


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_of_others_stand_above_the_view(plan: RunPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.delenv("RANK", raising=False)
    sink = LiveSink(plan, Path("runs/tiny"), "CPU", {}, TrainingConsole(screen, width=80, environ=UNICODE))
    sink.start(1)
    say("saved runs/tiny/checkpoints/step_1")
    sink.end(RunEnd("finished", 1, 1.0))
    lines = seen(screen.getvalue())
    saved = lines.index("saved runs/tiny/checkpoints/step_1")
    assert any(line.startswith("step 0 of 10") for line in lines[saved:])


def test_an_end_without_a_start_is_fine(
    plan: RunPlan, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    sink = LiveSink(plan, Path("runs/tiny"), "CPU", {}, console_of(io.StringIO(), terminal=True))
    sink.end(RunEnd("failed", 0, 0.1))
    assert "failed at step 0" in capsys.readouterr().out


def test_little_bars() -> None:
    assert sparks([], 8) == ""
    assert sparks([2.0], 8) == "▁"
    assert sparks([8.0, 4.0, 1.0], 8) == "█▄▁"
    assert sparks([1.0, 1.0], 8) == "▁▁"
    many = sparks([1000.0 - step for step in range(1000)], 32)
    assert len(many) == 32
    assert (many[0], many[-1]) == ("█", "▁")


def test_the_time_left_is_that_of_the_steps_after_the_first() -> None:
    now = 0.0
    pace = Pace(100, clock=lambda: now)
    pace.start(11)
    assert (pace.step, pace.left()) == (10, "-")
    now = 60.0
    pace.advance(11)
    assert pace.left() == "-"
    for step in range(12, 21):
        now += 2.0
        pace.advance(step)
    assert pace.left() == "2m40s"
    now += 1000.0
    assert pace.left() == "2m40s", "a pause is not the pace"
