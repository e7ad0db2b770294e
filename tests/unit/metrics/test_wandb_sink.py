from __future__ import annotations

import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.hang import Hang
from tests.unit.metrics.wandb_fixtures import Voice, make_sink
from tests.unit.metrics.wandb_run_fixtures import FINISHED, FakeRun, eventually, patch_init
from trainer.config.schema import LoggingConfig, WandbMode
from trainer.loop.events import RunEnd, StepReport
from trainer.metrics import wandb_sink
from trainer.metrics.sink import Row, Sample
from trainer.restarts import Restart, remember

pytestmark = pytest.mark.usefixtures("ended_services")


def test_the_run_is_told_what_it_needs(
    tmp_path: Path, row: Row, report: StepReport, monkeypatch: pytest.MonkeyPatch, ended_services: list[str]
) -> None:
    run, voice = FakeRun(), Voice()
    calls = patch_init(monkeypatch, run)
    sink = make_sink(tmp_path, voice, WandbMode.online)
    sink.start(1)
    sink.advance(1)
    sink.write(row, report)
    sink.end(FINISHED)
    assert (calls[0]["mode"], calls[0]["resume"], calls[0]["group"]) == ("online", "allow", "tiny")
    assert (calls[0]["name"], calls[0]["job_type"]) == (tmp_path.name, "train")
    assert calls[0]["tags"] == ["mine", "pp1_tp1_dp1"]
    assert calls[0]["config"]["api_key"] == "<redacted>"
    assert ("*", {"step_metric": "step"}) in run.metrics
    assert run.rows == [row]
    assert run.summary == {
        "run/status": "finished",
        "run/wall_time_s": 1.0,
        "run/restarts": 0,
        "eval/best_loss": report.eval_loss,
    }
    assert run.ended == ["finish 0"]
    assert (run.alerts, voice.said, voice.noted, voice.warned, ended_services) == ([], [], [], [], [])


@pytest.mark.parametrize("mode", [WandbMode.online, WandbMode.offline])
def test_a_resumed_run_continues_its_wandb_run_and_a_fresh_one_does_not(
    mode: WandbMode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = patch_init(monkeypatch, FakeRun())
    for first_step in (1, 4, 1):
        sink = make_sink(tmp_path, Voice(), mode)
        sink.start(first_step)
        sink.end(FINISHED)
    ids = [call["id"] for call in calls]
    assert ids[0] == ids[1] != ids[2]
    assert {call["resume"] for call in calls} == {"allow"}


@pytest.mark.parametrize(("status", "ended"), [("stopped", ["preempting", "finish 1"]), ("failed", ["finish 1"])])
def test_wandb_hears_how_the_run_ended(
    status: str, ended: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeRun()
    patch_init(monkeypatch, run)
    sink = make_sink(tmp_path, Voice(), WandbMode.online)
    sink.start(1)
    sink.end(RunEnd(status, 3, 1.0))
    assert run.ended == ended
    assert run.summary["run/status"] == status


@pytest.mark.parametrize(
    ("error", "title"),
    [
        ("NumericsError: the loss must be finite, but was nan", "Loss or gradients not finite"),
        ("PeerLostError: x", "Training failed"),
    ],
)
def test_a_failure_is_an_alert(error: str, title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun()
    patch_init(monkeypatch, run)
    sink = make_sink(tmp_path, Voice())
    sink.start(1)
    sink.end(RunEnd("failed", 7, 1.0, error))
    assert run.alerts == [("ERROR", title, f"after step 7: {error}")]


def test_a_start_after_a_restart_is_an_alert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun()
    patch_init(monkeypatch, run)
    for first_step in (1, 4):
        sink = make_sink(tmp_path, Voice())
        sink.start(first_step)
        sink.end(FINISHED)
    assert run.alerts == [("INFO", "Training started again", f"{tmp_path} goes on at step 4")]
    remember(tmp_path, Restart.now(7, 5, (1,)))
    sink = make_sink(tmp_path, Voice())
    sink.start(4)
    sink.end(FINISHED)
    what = f"{tmp_path} goes on at step 4; restart 1, after exit code 7 at step 5, ranks lost: [1]"
    assert run.alerts[1:] == [("WARN", "Training started again", what)]
    assert run.summary["run/restarts"] == 1


def test_a_stall_is_an_alert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun()
    patch_init(monkeypatch, run)
    sink = make_sink(tmp_path, Voice(), logging=LoggingConfig(stall_alert_s=1))
    sink.start(1)
    sink.advance(3)
    eventually(lambda: run.alerts)
    [(level, title, text)] = run.alerts
    assert (level, title) == ("WARN", "No step ends")
    assert text.endswith("s after step 3")
    sink.end(FINISHED)


def test_a_stall_is_not_watched_for_when_nobody_wants_to_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch_init(monkeypatch, FakeRun())
    sink = make_sink(tmp_path, Voice(), logging=LoggingConfig(stall_alert_s=0))
    sink.start(1)
    assert "stall-watch" not in {thread.name for thread in threading.enumerate()}
    sink.end(FINISHED)


def test_a_run_that_goes_back_stays_one_wandb_run(
    tmp_path: Path, row: Row, report: StepReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeRun()
    calls = patch_init(monkeypatch, run)
    sink = make_sink(tmp_path, Voice())
    sink.start(1)
    for step, loss in ((4, 3.0), (6, 1.0)):
        sink.write({**row, "step": step}, replace(report, step=step, eval_loss=loss))
        sink.show([Sample(step, "a", "first")])
    sink.rewind(4)
    sink.write({**row, "step": 6}, replace(report, step=6, eval_loss=2.0))
    sink.show([Sample(6, "a", "second")])
    eventually(lambda: run.rows and run.rows[-1]["step"] == 6)
    assert run.ended == [], "it goes on"
    sink.end(FINISHED)
    assert len(calls) == 1
    assert run.ended == ["finish 0"]
    assert [one["step"] for one in run.rows if "samples" not in one] == [4, 6, 6]
    assert texts(run)[-1] == (6, [[4, "a", "first"], [6, "a", "second"]])
    assert run.alerts == [("WARN", "Training went back", f"{tmp_path} goes on from the checkpoint of step 4")]
    assert (run.summary["run/status"], run.summary["eval/best_loss"]) == ("finished", 2.0)


def texts(run: FakeRun) -> list[tuple[int, list[list[object]]]]:
    return [(row["step"], row["samples"].data) for row in run.rows if "samples" in row]


def test_texts_are_a_table_that_grows_also_over_a_resume(
    tmp_path: Path, row: Row, report: StepReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "samples.jsonl").write_text(
        '{"step": 2, "prompt": "a", "text": "two"}\n{"step": 4, "prompt": "a", "text": "gone"}\n'
    )
    run = FakeRun()
    patch_init(monkeypatch, run)
    sink = make_sink(tmp_path, Voice())
    sink.start(4)
    sink.show([Sample(4, "a", "four"), Sample(4, "b", "4")])
    sink.show([Sample(6, "a", "six")])
    sink.end(FINISHED)
    four = [[2, "a", "two"], [4, "a", "four"], [4, "b", "4"]]
    assert texts(run) == [(4, four), (6, [*four, [6, "a", "six"]])]


def test_a_table_that_fails_costs_no_rows(
    tmp_path: Path, row: Row, report: StepReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def refuse(**_: object) -> None:
        raise PermissionError("no artifacts for you")

    run, voice = FakeRun(), Voice()
    patch_init(monkeypatch, run)
    monkeypatch.setattr(wandb, "Table", refuse)
    sink = make_sink(tmp_path, voice)
    sink.start(1)
    sink.show([Sample(1, "", "x")])
    eventually(lambda: sink._table_error)
    sink.write(row, report)
    sink.show([Sample(2, "", "y")])
    sink.end(FINISHED)
    assert run.rows == [row]
    assert voice.warned == ["texts are no longer added to wandb (PermissionError: no artifacts for you)"]
    assert run.ended == ["finish 0"]


def test_a_start_that_explodes_switches_off_with_one_warning(
    tmp_path: Path, row: Row, report: StepReport, monkeypatch: pytest.MonkeyPatch, ended_services: list[str]
) -> None:
    voice = Voice()
    patch_init(monkeypatch, RuntimeError("no\nservice"))
    sink = make_sink(tmp_path, voice)
    sink.start(1)
    sink.write(row, report)
    sink.end(FINISHED)
    assert voice.warned == ["wandb is off for the rest of this run (RuntimeError: no service)"]
    assert voice.noted == []
    assert ended_services == ["ended"], "its processes must not hold up the end"


def test_a_wandb_that_is_not_installed_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voice = Voice()
    monkeypatch.setitem(sys.modules, "wandb", None)
    sink = make_sink(tmp_path, voice)
    sink.start(1)
    sink.end(FINISHED)
    assert len(voice.warned) == 1
    assert "ModuleNotFoundError" in voice.warned[0]


def test_a_log_that_explodes_switches_off_with_one_warning(
    tmp_path: Path, row: Row, report: StepReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice, run = Voice(), FakeRun(log_error=OSError("pipe"))
    patch_init(monkeypatch, run)
    sink = make_sink(tmp_path, voice)
    sink.start(1)
    for _ in range(3):
        sink.write(row, report)
    sink.end(FINISHED)
    assert voice.warned == [
        "wandb is off for the rest of this run (OSError: pipe); what it has: wandb sync --include-online wandb/run-x"
    ]
    assert run.ended == []


def test_a_wandb_that_hangs_holds_up_no_step_and_the_end_only_for_a_while(
    tmp_path: Path, row: Row, report: StepReport, monkeypatch: pytest.MonkeyPatch, hang: Hang
) -> None:
    voice = Voice()
    patch_init(monkeypatch, FakeRun(on_log=hang))
    monkeypatch.setattr(wandb_sink, "_FINISH_S", 0.2)
    sink = make_sink(tmp_path, voice)
    sink.start(1)
    for step in range(1, 101):
        sink.advance(step)
        sink.write(row, report)
    sink.show([Sample(1, "", "x")])
    assert not hang.has_returned, "a hundred rows must not wait for one that hangs"
    sink.end(FINISHED)
    assert not hang.has_returned
    assert "TimeoutError: no answer within 0.2 s" in voice.warned[0]


def test_where_the_server_is_gone_the_end_does_not_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hang: Hang
) -> None:
    voice = Voice()
    patch_init(monkeypatch, FakeRun(on_finish=hang))
    monkeypatch.setattr(wandb_sink, "is_reachable", lambda url: False)
    monkeypatch.setattr(wandb_sink, "_FINISH_AFTER_FAILURE_S", 0.1)
    sink = make_sink(tmp_path, voice, WandbMode.online)
    sink.start(1)
    sink.end(FINISHED)
    assert not hang.has_returned
    assert len(voice.warned) == 1


def test_disabled_does_nothing(tmp_path: Path, row: Row, report: StepReport, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, voice = patch_init(monkeypatch, FakeRun()), Voice()
    sink = make_sink(tmp_path, voice, WandbMode.disabled)
    sink.start(1)
    sink.advance(1)
    sink.write(row, report)
    sink.show([Sample(1, "", "x")])
    sink.end(FINISHED)
    assert (calls, voice.said, voice.noted, voice.warned) == ([], [], [], [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("of_wandb", ["file", "file/below", "has_one", "shut"])
def test_a_folder_that_cannot_be_written_is_told_with_the_one_that_is_taken(
    of_wandb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "has_one").mkdir()
    (tmp_path / "has_one" / "wandb").write_text("")
    # Root may write into any folder.
    monkeypatch.setattr(os, "access", lambda path, mode: "shut" not in str(path))
    voice, inits = Voice(), patch_init(monkeypatch, FakeRun())
    sink = make_sink(tmp_path / "run", voice, logging=LoggingConfig(wandb_dir=str(tmp_path / of_wandb)))
    sink.start(1)
    sink.end(FINISHED)
    assert [call["dir"] for call in inits] == [str(tmp_path / "run")]
    [warning] = voice.warned
    assert warning.startswith(
        f"logging.wandb_dir must be a folder that can be written, but {tmp_path / of_wandb / 'wandb'} cannot ("
    )
    assert warning.endswith(f"; what wandb writes is in {tmp_path / 'run' / 'wandb'} instead")


def test_a_folder_that_can_be_written_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voice, inits = Voice(), patch_init(monkeypatch, FakeRun())
    sink = make_sink(tmp_path / "run", voice, logging=LoggingConfig(wandb_dir=str(tmp_path / "new" / "one")))
    sink.start(1)
    sink.end(FINISHED)
    assert (inits[0]["dir"], voice.warned) == (str(tmp_path / "new" / "one"), [])
