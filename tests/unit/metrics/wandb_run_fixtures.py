from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers.hang import Hang
from trainer.loop.events import RunEnd

FINISHED = RunEnd("finished", 5, 1.0)


class FakeRun:
    id = "abcd1234"

    def __init__(self, log_error: Exception | None = None, on_log: Hang | None = None, on_finish: Hang | None = None):
        self.log_error, self.on_log, self.on_finish = log_error, on_log, on_finish
        self.rows: list[dict[str, Any]] = []
        self.metrics: list[tuple[str, dict[str, Any]]] = []
        self.ended: list[str] = []
        self.alerts: list[tuple[str, str, str]] = []
        self.artifacts: list[tuple[Any, list[str]]] = []
        self.summary: dict[str, object] = {}
        self.settings = type("S", (), {"sync_dir": "wandb/run-x"})()

    def define_metric(self, name: str, **kwargs: Any) -> None:
        self.metrics.append((name, kwargs))

    def log(self, row: dict[str, Any]) -> None:
        if self.on_log:
            self.on_log()
        if self.log_error:
            raise self.log_error
        self.rows.append(row)

    def alert(self, title: str, text: str, level: str) -> None:
        assert len(title) < 64
        self.alerts.append((level, title, text))

    def log_artifact(self, artifact: Any, aliases: list[str]) -> None:
        self.artifacts.append((artifact, aliases))

    def mark_preempting(self) -> None:
        self.ended.append("preempting")

    def finish(self, exit_code: int) -> None:
        if self.on_finish:
            self.on_finish()
        self.ended.append(f"finish {exit_code}")


def patch_init(monkeypatch: pytest.MonkeyPatch, run: FakeRun | Exception) -> list[dict[str, Any]]:
    import wandb

    calls: list[dict[str, Any]] = []

    def init(**kwargs: Any) -> FakeRun:
        calls.append(kwargs)
        if isinstance(run, Exception):
            raise run
        return run

    monkeypatch.setattr(wandb, "init", init)
    return calls


def eventually(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
