from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.made_runs import MadeRun, make_run
from trainer.metrics.sink import Sample
from trainer.records.metric_columns import Metrics
from trainer.records.run_record import RunRecord, read_record
from trainer.reporting.page import ASSETS, LIBRARY, Content, json_in_html, page
from trainer.reporting.sweep_board import Goal

GOAL = Goal("train/loss")
ECHARTS_6_1_0 = "b66b25aeb4df84e33199dc21694014d336d222cbd9deb0e5a7c14bd6aa0d0fd0"
"""SHA-256 of dist/echarts.min.js in the package echarts 6.1.0 of npm."""


def of(record: RunRecord) -> str:
    return page(Content([record], record.name, GOAL))


def data_of(text: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    held: dict[str, object] = json.loads(found[1])
    return held


@pytest.fixture(scope="module")
def finished(made: Path) -> RunRecord:
    return read_record(made / "finished")


def test_the_library_is_the_published_one() -> None:
    assert hashlib.sha256((ASSETS / LIBRARY).read_bytes()).hexdigest() == ECHARTS_6_1_0
    assert "Apache License" in (ASSETS / "echarts.LICENSE").read_text()
    assert "Apache ECharts" in (ASSETS / "echarts.NOTICE").read_text()


def test_a_page_runs_its_own_scripts_and_no_other(finished: RunRecord) -> None:
    text = of(finished)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    allowed = re.findall(r"sha256-([\w+/=]+)", policy[1].replace("&#39;", "'"))
    assert [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts] == allowed
    assert "default-src &#39;none&#39;" in policy[1]
    assert len(text) < 5e6


def test_no_text_of_a_run_gets_out_of_its_place(finished: RunRecord) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    broken = replace(
        finished, samples=(Sample(1, evil, evil),), config={evil: evil}, environment={evil: evil}, notes=(evil,)
    )
    text = page(Content([broken], evil, GOAL, [evil]))
    assert evil not in text
    assert "<img src=x" not in text
    assert text.count("<script>") == 5
    assert json_in_html({"a": evil}).count("<") == 0


def test_what_could_not_be_read_is_said(finished: RunRecord) -> None:
    text = of(replace(finished, notes=("metrics.jsonl: 3 lines hold no row",)))
    assert "metrics.jsonl: 3 lines hold no row" in text
    assert "What could not be read" in text
    assert "What could not be read" not in of(replace(finished, notes=()))


def test_every_chart_has_words_and_a_table(finished: RunRecord) -> None:
    text = of(finished)
    charts = re.findall(r'data-(?:curve|board)="([^"]+)" role="img" tabindex="0" aria-label="([^"]+)"', text)
    assert {"loss", "throughput", "mfu", "grad_norm", "learning_rate", "sources", "memory", "step"} <= dict(
        charts
    ).keys()
    assert all(len(words) > 40 for _, words in charts)
    tables = re.findall(r"<summary>[^<]* as a table</summary>", text)
    assert len(tables) == len(charts)


def _folder_for_file(run: Path) -> None:
    (run / "timeline.json").unlink()
    (run / "timeline.json").mkdir()


BREAKAGES: dict[str, Callable[[Path], object]] = {
    "no metrics": lambda run: (run / "metrics.jsonl").unlink(),
    "empty metrics": lambda run: (run / "metrics.jsonl").write_text(""),
    "a single row": lambda run: (run / "metrics.jsonl").write_text('{"step": 1, "train/loss": 3.5}\n'),
    "rows without a value": lambda run: (run / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n'),
    "NaN": lambda run: (run / "metrics.jsonl").write_text(
        "".join(f'{{"step": {step}, "train/loss": NaN, "train/tokens_seen": 5}}\n' for step in range(1, 60))
    ),
    "one value that never changes": lambda run: (run / "metrics.jsonl").write_text(
        "".join(f'{{"step": {step}, "train/loss": 0.0, "train/grad_norm": 0}}\n' for step in range(1, 60))
    ),
    "huge values": lambda run: (run / "metrics.jsonl").write_text(
        '{"step": 1, "train/loss": 1e308}\n{"step": 2, "train/loss": -1e308}\n{"step": 3, "train/loss": 1e-320}\n'
    ),
    "times beyond all numbers": lambda run: (run / "metrics.jsonl").write_text(
        '{"step": 1, "time/step_ms": 1e300}\n{"step": 9007199254740991, "time/step_ms": 1e300}\n'
    ),
    "a config of huge numbers": lambda run: (run / "config.yaml").write_text(
        f"train: {{steps: {10**400}}}\noptimizer: {{grad_clip: {10**400}}}\n"
        f"layout: {{pipeline_parallel_size: {10**400}}}\n"
    ),
    "a summary of huge numbers": lambda run: (run / "summary.json").write_text(
        f'{{"status": "finished", "step": {10**400}, "wall_time_s": {10**400}}}'
    ),
    "truncated metrics": lambda run: (run / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes()[:-40]),
    "binary metrics": lambda run: (run / "metrics.jsonl").write_bytes(bytes(range(256)) * 40),
    "no plan": lambda run: (run / "plan.json").unlink(),
    "a plan that is a list": lambda run: (run / "plan.json").write_text("[1]"),
    "a plan of other kinds": lambda run: (run / "plan.json").write_text(
        '{"model": 3, "layout": [], "prediction": {"stages": [{"peak_gib": "x"}, 4, {"peak_gib": 2, "memory_gib": 5}], '
        '"step_time_s": "fast", "confidence": [], "mfu": -1}}'
    ),
    "a prediction of nothing": lambda run: (run / "plan.json").write_text('{"prediction": null}'),
    "no config": lambda run: (run / "config.yaml").unlink(),
    "a config of another version": lambda run: (run / "config.yaml").write_text("name: x\nold: {key: [1, {a: 2}]}\n"),
    "a config that is no YAML": lambda run: (run / "config.yaml").write_text("a: [\n"),
    "a config of numbers that are none": lambda run: (run / "config.yaml").write_text(
        "name: [1]\ntrain: {steps: .nan}\noptimizer: {grad_clip: .inf, lr: .nan}\ncheckpoint: {init_from: 3}\n"
    ),
    "no summary": lambda run: (run / "summary.json").unlink(),
    "a summary of other kinds": lambda run: (run / "summary.json").write_text(
        '{"status": 5, "step": "x", "parameters": true, "wall_time_s": "long", "layout": 3, "versions": []}'
    ),
    "events of a later version": lambda run: (run / "events.jsonl").write_text(
        '{"kind": "teleport", "step": 4, "time": "2026-11-02T09:30:00+00:00"}\n{"kind": "save"}\n'
        '{"kind": "rewind", "step": -3}\n'
    ),
    "torn events": lambda run: (run / "events.jsonl").write_text('{"kind": "start", "st\n{"kind": "end", "step": 9}\n'),
    "samples of other kinds": lambda run: (run / "samples.jsonl").write_text(
        '{"step": 1, "prompt": "", "text": ""}\n{"step": 1, "prompt": 5, "text": "x"}\n'
        '{"step": 2, "prompt": "\\ud800", "text": "\\ud800\\u0000"}\n'
    ),
    "a timeline that is cut off": lambda run: (run / "timeline.json").write_text('{"version": 1, "spans": ['),
    "a timeline of a later version": lambda run: (run / "timeline.json").write_text('{"version": 99}'),
    "a folder in the place of a file": _folder_for_file,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which a copy is broken in each way."""
    return make_run(
        tmp_path_factory.mktemp("small") / "run", MadeRun(steps=60, done=60, evaluates_every=20, saves_every=20)
    )


@pytest.mark.parametrize("kind", BREAKAGES)
def test_a_folder_that_is_damaged_has_a_page_too(small: Path, tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(small, run)
    BREAKAGES[kind](run)
    text = of(read_record(run))
    assert data_of(text)["runs"]
    assert "</html>" in text
    # Beside a run that is whole too.
    assert "</html>" in page(Content([read_record(run), read_record(small)], "two", GOAL))


def test_a_run_without_anything(finished: RunRecord) -> None:
    nothing = Metrics(np.empty(0, np.int64), {})
    empty = replace(finished, metrics=nothing, discarded=nothing, plan=None, summary=None, config={}, events=())
    text = of(replace(empty, samples=(), starts=(), checkpoints=(), environment={}, typed_config=None))
    assert 'id="curves"' not in text
    assert 'id="events"' not in text


def test_rows_that_were_left_out_are_drawn_apart(finished: RunRecord) -> None:
    steps = np.array([500, 501, 502], dtype=np.int64)
    discarded = Metrics(steps, {"train/loss": (steps, np.array([5.0, 6.0, 7.0]))})
    data = data_of(of(replace(finished, discarded=discarded)))
    curves = data["curves"]
    assert isinstance(curves, dict)
    [line] = [line for line in curves["loss"]["lines"] if line["kind"] == "left_out"]
    assert (line["steps"], line["values"]) == ([500, 501, 502], [5.0, 6.0, 7.0])
