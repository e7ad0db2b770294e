from __future__ import annotations

import errno
import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from trainer.config.plan import RunPlan
from trainer.log import say
from trainer.loop.events import RunEnd, StepReport
from trainer.metrics.console import ConsoleSink, TrainingConsole, _console
from trainer.metrics.sink import Row

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def play(
    plan: RunPlan, row: Row, report: StepReport, terminal: bool, first_step: int = 1, bad_step: int | None = None
) -> str:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=80, highlight=False)
    sink = ConsoleSink(plan, Path("runs/tiny"), 1_234_567, "CPU", "disabled", console)
    sink.start(first_step)
    for step in range(first_step, 11):
        sink.advance(step)
        loss = float("nan") if step == bad_step else 11.0 - step
        sink.write({**row, "step": step}, replace(report, step=step, loss=loss, eval_loss=None))
    sink.end(RunEnd("finished", 10, 83.0))
    return output.getvalue()


def test_plain_output_has_no_escapes_and_fits_eighty_columns(plan: RunPlan, row: Row, report: StepReport) -> None:
    text = play(plan, row, report, terminal=False)
    assert "\x1b" not in text
    assert "\r" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80


def test_step_lines_stand_in_columns(plan: RunPlan, row: Row, report: StepReport) -> None:
    lines = play(plan, row, report, terminal=False).splitlines()
    header = next(index for index, line in enumerate(lines) if line.split()[:2] == ["step", "loss"])
    steps = lines[header + 1 : header + 11]
    assert [line.split()[0] for line in steps] == [str(step) for step in range(1, 11)]
    for title in ("step", "loss", "grad", "lr", "tok/s", "TF/gpu", "GiB"):
        end = lines[header].index(title) + len(title)
        assert all(line[end - 1] != " " and line[end : end + 1] in ("", " ") for line in steps), title
    assert steps[0].split()[1:6] == ["10.0000", "0.750", "3.00e-04", "12.3k", "1.50"]
    # The first step tells nothing about the pace of the others.
    assert steps[0].split()[-1] == "-"
    assert re.fullmatch(r"\d+m\d\ds", steps[1].split()[-1])


def test_banner_says_what_runs_where(plan: RunPlan, row: Row, report: StepReport) -> None:
    text = play(plan, row, report, terminal=False)
    for part in (
        "Trident: tiny",
        "1,234,567 parameters (1.23M)",
        "pipeline 2 x tensor 2 x data 2 = 8 ranks",
        "2,048 tokens per step",
        "20,480 tokens",
        "runs/tiny/metrics.jsonl",
        "disabled",
    ):
        assert part in " ".join(text.split()), part
    assert "resuming" not in text
    assert "resuming at step 4" in play(plan, row, report, terminal=False, first_step=4)


def test_the_end_shows_a_loss_curve_that_falls(plan: RunPlan, row: Row, report: StepReport) -> None:
    text = play(plan, row, report, terminal=False)
    assert "•" in text or "*" in text
    assert "loss 10.0000 at step 1, 1.0000 at step 10" in text
    assert "finished at step 10 after 1m23s; summary in runs/tiny/summary.json" in text


def test_a_terminal_gets_a_progress_bar_and_the_same_lines(plan: RunPlan, row: Row, report: StepReport) -> None:
    text = play(plan, row, report, terminal=True)
    assert "\x1b[" in text
    assert "10/10" in text
    plain = _ESCAPE.sub("", text)
    assert "10.0000" in plain
    assert all(len(line.split("\r")[-1].rstrip()) <= 80 for line in plain.splitlines())


def test_optional_columns(plan: RunPlan, row: Row, report: StepReport) -> None:
    text = play(plan, {**row, "perf/mfu": 0.4321}, report, terminal=False)
    assert "mfu" in text
    assert "43.2%" in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "mfu" not in play(plan, row, report, terminal=False)


def test_an_fp16_overflow_is_told_once(plan: RunPlan, row: Row, report: StepReport) -> None:
    text = play(plan, row, replace(report, skipped_steps=2, loss_scale=512.0), terminal=False)
    assert text.count("fp16 overflow: 2 steps skipped so far, loss scale 512") == 1


def test_a_skipped_batch_is_in_its_line_and_not_in_the_curve(plan: RunPlan, row: Row, report: StepReport) -> None:
    text = play(plan, row, replace(report, skipped_steps=1), terminal=False, bad_step=10)
    assert re.search(r"^ +10 +nan ", text, re.MULTILINE)
    assert "fp16" not in text
    assert "loss 10.0000 at step 1, 2.0000 at step 9" in text


@pytest.mark.parametrize("value", [123456789.0, 1e-12, float("inf"), 0.0])
def test_extreme_numbers_do_not_break_the_columns(value: float, plan: RunPlan, row: Row, report: StepReport) -> None:
    extreme: Row = {**row, "perf/tokens_per_second": value, "perf/tflops_per_gpu": value}
    text = play(plan, extreme, replace(report, grad_norm=value), terminal=False)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80


def test_text_in_brackets_is_no_markup(plan: RunPlan) -> None:
    output = io.StringIO()
    sink = ConsoleSink(plan, Path("runs/[red]x"), 1, "CPU", console=Console(file=output, width=80))
    sink.say("files=[a,b] [bold]")
    assert output.getvalue() == "files=[a,b] [bold]\n"


def test_a_long_command_is_not_wrapped(plan: RunPlan) -> None:
    output = io.StringIO()
    command = "wandb sync " + "/very/long/path" * 20
    ConsoleSink(plan, Path("runs/x"), 1, "CPU", console=Console(file=output, width=80)).say(command)
    assert output.getvalue() == command + "\n"


class _Gone(io.StringIO):
    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


GONE = (BrokenPipeError(), OSError(errno.EIO, "the terminal is gone"), OSError(errno.ENOSPC, "the disk is full"))


@pytest.mark.parametrize("error", GONE, ids=["pipe", "terminal", "disk"])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_reader_that_is_gone_does_not_stop_training(
    terminal: bool, error: OSError, plan: RunPlan, row: Row, report: StepReport
) -> None:
    console = TrainingConsole(file=_Gone(error), force_terminal=terminal, width=80)
    sink = ConsoleSink(plan, Path("runs/tiny"), 1, "CPU", console=console)
    sink.start(1)
    sink.advance(1)
    sink.write(row, report)
    sink.end(RunEnd("finished", 1, 1.0))


def test_width_of_the_terminal_that_is_written_to() -> None:
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 117, 0, 0))
    with os.fdopen(secondary, "w") as stream, os.fdopen(primary, "rb", buffering=0):
        assert _console(stream).width == 117
    assert _console(io.StringIO()).width == 80


def test_lines_of_others_stand_above_the_bar(plan: RunPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.delenv("RANK", raising=False)
    console = TrainingConsole(file=screen, force_terminal=True, width=80)
    sink = ConsoleSink(plan, Path("runs/tiny"), 1, "CPU", console=console)
    sink.start(1)
    say("saved runs/tiny/checkpoints/step_1")
    sink.end(RunEnd("finished", 1, 1.0))
    lines = _ESCAPE.sub("", screen.getvalue()).replace("\r", "\n").splitlines()
    assert "saved runs/tiny/checkpoints/step_1" in [line.strip() for line in lines]
