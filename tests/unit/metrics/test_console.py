from __future__ import annotations

import errno
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.metrics.console_fixtures import ASCII, console_of, play, seen
from trainer.config.plan import RunPlan
from trainer.loop.events import RunEnd, StepReport
from trainer.metrics.console import ConsoleSink, QuietSink
from trainer.metrics.live import LiveSink
from trainer.metrics.screen import TrainingConsole
from trainer.metrics.sink import Row, Sample


@pytest.fixture(autouse=True)
def reporting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)


def test_plain_output_has_no_escapes_and_fits_eighty_columns(plan: RunPlan, row: Row, report: StepReport) -> None:
    text = play(ConsoleSink, plan, row, report)
    assert "\x1b" not in text
    assert "\r" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80


def test_step_lines_stand_in_columns(plan: RunPlan, row: Row, report: StepReport) -> None:
    lines = play(ConsoleSink, plan, row, replace(report, eval_loss=None)).splitlines()
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


def test_the_beginning_says_what_runs_where(plan: RunPlan, row: Row, report: StepReport) -> None:
    text = " ".join(play(ConsoleSink, plan, row, report).split())
    for part in ("run tiny", "device CPU, fp32", "steps 10 = 20.5k tokens", "folder runs/tiny", "wandb disabled"):
        assert part in text, part
    assert "resuming" not in text
    assert "resuming at step 4" in play(ConsoleSink, plan, row, report, first_step=4)


def test_the_end_shows_a_loss_curve_that_falls_and_the_last_word(
    plan: RunPlan, row: Row, report: StepReport, capsys: pytest.CaptureFixture[str]
) -> None:
    text = play(ConsoleSink, plan, row, report)
    assert text.count("•") == 10
    assert "loss 10.0000 at step 1, 1.0000 at step 10" in text
    assert capsys.readouterr().out == "finished at step 10 after 1m23s; summary in runs/tiny/summary.json\n"


@pytest.mark.parametrize("kind", [ConsoleSink, LiveSink])
@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_ascii_only_and_no_line_too_long(
    kind: type[ConsoleSink], width: int, plan: RunPlan, row: Row, report: StepReport
) -> None:
    text = play(kind, plan, row, report, terminal=kind is LiveSink, width=width, environ=ASCII)
    assert text.isascii()
    assert "*" in text
    if kind is LiveSink:
        assert max(map(len, seen(text))) <= max(width, len("loss 10.0000 at step 1, 1.0000 at step 10"))


def test_optional_columns(plan: RunPlan, row: Row, report: StepReport) -> None:
    text = play(ConsoleSink, plan, {**row, "perf/mfu": 0.4321}, report)
    assert "mfu" in text
    assert "43.2%" in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "mfu" not in play(ConsoleSink, plan, row, report)


@pytest.mark.parametrize("kind", [ConsoleSink, LiveSink])
def test_an_fp16_overflow_is_told_once(kind: type[ConsoleSink], plan: RunPlan, row: Row, report: StepReport) -> None:
    overflown = replace(report, skipped_steps=2, loss_scale=512.0)
    text = play(kind, plan, row, overflown, terminal=kind is LiveSink)
    assert text.count("fp16 overflow: 2 steps skipped so far, loss scale 512") == 1


def test_overflows_before_the_checkpoint_that_a_run_went_back_to_are_not_told_again(
    plan: RunPlan, row: Row, report: StepReport
) -> None:
    output = io.StringIO()
    sink = ConsoleSink(plan, Path("runs/tiny"), "CPU", {"wandb": "disabled"}, console_of(output))
    sink.start(1)
    for step, skipped in ((2, 1), (4, 1), (6, 3)):
        sink.write({**row, "step": step}, replace(report, step=step, skipped_steps=skipped, loss_scale=512.0))
    sink.rewind(4)
    for step, skipped in ((5, 1), (6, 2)):
        sink.write({**row, "step": step}, replace(report, step=step, skipped_steps=skipped, loss_scale=512.0))
    told = [line for line in output.getvalue().splitlines() if "fp16 overflow" in line]
    assert [line.split()[2] for line in told] == ["1", "3", "2"]


def test_a_skipped_batch_is_in_its_line_and_not_in_the_curve(plan: RunPlan, row: Row, report: StepReport) -> None:
    text = play(ConsoleSink, plan, row, replace(report, skipped_steps=1, loss_scale=None), bad_step=10)
    assert re.search(r"^ +10 +nan ", text, re.MULTILINE)
    assert "fp16" not in text
    live = play(LiveSink, plan, row, replace(report, loss_scale=None), terminal=True, bad_step=10)
    assert "not finite: the batch was skipped" in live
    assert "loss 10.0000 at step 1, 2.0000 at step 9" in text


@pytest.mark.parametrize("value", [123456789.0, 1e-12, float("inf"), 0.0])
def test_extreme_numbers_do_not_break_the_columns(value: float, plan: RunPlan, row: Row, report: StepReport) -> None:
    extreme: Row = {**row, "perf/tokens_per_second": value, "perf/tflops_per_gpu": value}
    text = play(ConsoleSink, plan, extreme, replace(report, grad_norm=value))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80


def sink_on(output: io.StringIO, plan: RunPlan, environ: dict[str, str] | None = None) -> ConsoleSink:
    return ConsoleSink(plan, Path("runs/[red]x"), "CPU", {}, console_of(output, environ=environ))


def test_text_in_brackets_is_no_markup(plan: RunPlan) -> None:
    output = io.StringIO()
    sink = sink_on(output, plan)
    sink.say("files=[a,b] [bold]")
    assert output.getvalue() == "files=[a,b] [bold]\n"
    sink.start(1)
    assert "runs/[red]x" in output.getvalue()


def test_a_long_command_is_not_wrapped(plan: RunPlan) -> None:
    output = io.StringIO()
    command = "wandb sync " + "/very/long/path" * 20
    sink_on(output, plan).say(command)
    assert output.getvalue() == command + "\n"


def test_texts_are_shown_in_part_and_can_do_nothing_to_the_terminal(plan: RunPlan) -> None:
    output = io.StringIO()
    samples = [
        Sample(50, "def ", "f(x):\n\treturn \x1b[31mé[bold]\x07"),
        Sample(50, "", "x" * 200),
        Sample(50, "", "\n".join("abcdefg")),
        *(Sample(50, "", str(number)) for number in range(3)),
    ]
    sink_on(output, plan).show(samples)
    assert output.getvalue().splitlines() == [
        "the model writes at step 50:",
        "  1 | def f(x):",
        "    |     return ?[31mé[bold]?",
        f"  2 | {'x' * 71}...",
        "  3 | a",
        "    | b",
        "    | c",
        "    | ...",
        "  4 | 0",
        "    and 2 more in samples.jsonl",
    ]
    output = io.StringIO()
    sink_on(output, plan, ASCII).show(samples[:1])
    assert "return ?[31m?[bold]?" in output.getvalue()


def test_notes_come_before_the_last_word(plan: RunPlan, capsys: pytest.CaptureFixture[str]) -> None:
    notes: list[str] = []
    output = io.StringIO()
    sink = ConsoleSink(plan, Path("runs/x"), "CPU", {}, console_of(output), notes)
    notes.append("wandb is offline")
    sink.end(RunEnd("stopped", 3, 2.0))
    told = ["wandb is offline", "stopped at step 3 after 0m02s; summary in runs/x/summary.json"]
    assert capsys.readouterr().out.splitlines() == told


def test_quiet_is_the_last_word(
    row: Row, report: StepReport, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.log._Terminal.is_quiet", True)
    sink = QuietSink(Path("runs/x"), ["wandb is offline"])
    sink.start(1)
    sink.advance(1)
    sink.write(row, report)
    sink.show([Sample(1, "", "x")])
    sink.end(RunEnd("finished", 3, 2.0))
    assert capsys.readouterr().out == "finished at step 3 after 0m02s; summary in runs/x/summary.json\n"


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
@pytest.mark.parametrize("kind", [ConsoleSink, LiveSink])
def test_a_reader_that_is_gone_does_not_stop_training(
    kind: type[ConsoleSink], error: OSError, plan: RunPlan, row: Row, report: StepReport
) -> None:
    console = TrainingConsole(_Gone(error), is_terminal=kind is LiveSink, width=80)
    sink = kind(plan, Path("runs/tiny"), "CPU", {}, console)
    sink.start(1)
    sink.advance(1)
    sink.write(row, report)
    sink.show([Sample(1, "", "x")])
    sink.end(RunEnd("finished", 1, 1.0))
