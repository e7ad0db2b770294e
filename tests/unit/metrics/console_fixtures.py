"""A console to play a run on, and what a person would see of it."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from pathlib import Path

from trainer.config.plan import RunPlan
from trainer.loop.events import RunEnd, StepReport
from trainer.metrics.console import ConsoleSink
from trainer.metrics.screen import TrainingConsole
from trainer.metrics.sink import Row

UNICODE = {"LANG": "C.UTF-8", "TERM": "xterm"}
ASCII = {"LANG": "C", "LC_CTYPE": "C.UTF-8", "TERM": "xterm"}
"""As Python changes the environment under LANG=C."""
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def console_of(
    stream: io.StringIO, terminal: bool = False, width: int = 80, environ: dict[str, str] | None = None
) -> TrainingConsole:
    return TrainingConsole(stream, is_terminal=terminal, width=width, environ=environ or UNICODE)


def play(
    kind: type[ConsoleSink],
    plan: RunPlan,
    row: Row,
    report: StepReport,
    terminal: bool = False,
    width: int = 80,
    environ: dict[str, str] | None = None,
    first_step: int = 1,
    bad_step: int | None = None,
) -> str:
    """Train to step 10 with a loss of 11 - step, but none at a bad one; return what was written."""
    output = io.StringIO()
    console = console_of(output, terminal, width, environ)
    sink = kind(plan, Path("runs/tiny"), "CPU", {"wandb": "disabled"}, console)
    sink.start(first_step)
    for step in range(first_step, 11):
        sink.advance(step)
        loss = math.nan if step == bad_step else 11.0 - step
        known: Row = {name: value for name, value in row.items() if name != "train/loss"}
        if step != bad_step:
            known["train/loss"] = loss
        sink.write({**known, "step": step}, replace(report, step=step, loss=loss))
    sink.end(RunEnd("finished", 10, 83.0))
    return output.getvalue()


def seen(text: str) -> list[str]:
    """Return the lines without what moves the cursor and colours them."""
    return [line.rstrip() for line in _ESCAPE.sub("", text).replace("\r", "\n").splitlines()]
