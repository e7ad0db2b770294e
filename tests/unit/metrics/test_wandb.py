from __future__ import annotations

import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from trainer.config.schema import LoggingConfig, WandbMode
from trainer.loop.events import RunEnd, StepReport
from trainer.metrics import wandb_mode, wandb_sink
from trainer.metrics.bounded import bounded
from trainer.metrics.sink import Row
from trainer.metrics.wandb_mode import WandbChoice, choose_mode, has_api_key, is_reachable
from trainer.metrics.wandb_sink import WandbSink

FINISHED = RunEnd("finished", 5, 1.0)
KEY = {"WANDB_API_KEY": "k" * 40}


def online(_url: str) -> bool:
    return True


def unreachable(_url: str) -> bool:
    return False


def never(_url: str) -> bool:
    raise AssertionError("the network must not be asked")


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path)}


def test_auto_with_a_key_and_a_network_is_online(home: dict[str, str]) -> None:
    assert choose_mode(WandbMode.auto, {**home, **KEY}, online) == WandbChoice(WandbMode.online)


def test_auto_without_a_key_is_offline_and_asks_no_network(home: dict[str, str]) -> None:
    choice = choose_mode(WandbMode.auto, home, never)
    assert choice.mode is WandbMode.offline
    assert "WANDB_API_KEY" in choice.reason


@pytest.mark.parametrize("asked", [WandbMode.auto, WandbMode.online])
def test_without_a_network_it_is_offline(asked: WandbMode, home: dict[str, str]) -> None:
    choice = choose_mode(asked, {**home, **KEY}, unreachable)
    assert choice.mode is WandbMode.offline
    assert "api.wandb.ai cannot be reached" in choice.reason


@pytest.mark.parametrize("asked", [WandbMode.disabled, WandbMode.offline])
def test_what_is_asked_for_is_kept(asked: WandbMode, home: dict[str, str]) -> None:
    assert choose_mode(asked, {**home, **KEY}, never).mode is asked


@pytest.mark.parametrize(("wish", "mode"), [("disabled", WandbMode.disabled), ("offline", WandbMode.offline)])
def test_auto_follows_wandbs_own_variable(wish: str, mode: WandbMode, home: dict[str, str]) -> None:
    assert choose_mode(WandbMode.auto, {**home, **KEY, "WANDB_MODE": wish}, never).mode is mode
    assert choose_mode(WandbMode.online, {**home, **KEY, "WANDB_MODE": wish}, online).mode is WandbMode.online


def test_a_key_in_netrc_counts_for_its_host_only(tmp_path: Path, home: dict[str, str]) -> None:
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password k\n")
    assert has_api_key("api.wandb.ai", home)
    assert not has_api_key("wandb.example.org", home)
    other = tmp_path / "other"
    other.write_text("this is { no netrc\n")
    assert not has_api_key("api.wandb.ai", {**home, "NETRC": str(other)})


def test_a_server_of_ones_own_is_probed(home: dict[str, str]) -> None:
    asked: list[str] = []
    environ = {**home, **KEY, "WANDB_BASE_URL": "http://wandb.local:8080"}

    def reachable(url: str) -> bool:
        asked.append(url)
        return True

    choose_mode(WandbMode.auto, environ, reachable)
    assert asked == ["http://wandb.local:8080"]


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "getproxies", dict)


@pytest.mark.usefixtures("no_proxy")
def test_a_listening_port_is_reachable_and_a_closed_one_is_not() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert is_reachable(f"http://127.0.0.1:{port}")
    assert not is_reachable(f"http://127.0.0.1:{port}")


def test_behind_a_proxy_it_is_the_proxy_that_must_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        proxy = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(urllib.request, "getproxies", lambda: {"https": proxy})
        monkeypatch.setattr(urllib.request, "proxy_bypass", lambda host: False)
        assert is_reachable("https://wandb.invalid")


@pytest.mark.usefixtures("no_proxy")
def test_a_slow_name_look_up_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_mode, "_PROBE_S", 0.1)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: time.sleep(5))
    started = time.perf_counter()
    assert not is_reachable("https://api.wandb.ai")
    assert time.perf_counter() - started < 2


def test_bounded_returns_raises_and_gives_up() -> None:
    assert bounded(lambda: 7, 5.0) == 7
    with pytest.raises(ZeroDivisionError):
        bounded(lambda: 1 // 0, 5.0)
    with pytest.raises(TimeoutError):
        bounded(lambda: time.sleep(5), 0.05)
    with pytest.raises(RuntimeError, match="SystemExit"):
        bounded(lambda: exit(3), 5.0)


class Voice:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []


def make_sink(run_dir: Path, voice: Voice, mode: WandbMode = WandbMode.offline) -> WandbSink:
    return WandbSink(
        run_dir=run_dir,
        logging=LoggingConfig(wandb_tags=("mine",)),
        choice=WandbChoice(mode, "no API key is set"),
        group="tiny",
        tags=("pp1_tp1_dp1",),
        config={"model": {"hidden_size": 64}, "api_key": "s3cr3t-value"},
        say=voice.said.append,
        warn=voice.warned.append,
    )


def test_offline_really_writes_into_the_run_folder(tmp_path: Path, row: Row, report: StepReport) -> None:
    voice = Voice()
    sink = make_sink(tmp_path, voice)
    sink.start(1)
    sink.write(row, report)
    sink.end(FINISHED)
    assert voice.warned == []
    files = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 1
    content = b""
    # wandb's own process writes the last block a moment after finish has returned.
    for _ in range(100):
        content = files[0].read_bytes()
        if b"train/loss" in content:
            break
        time.sleep(0.1)
    assert b"train/loss" in content
    assert b"hidden_size" in content
    assert b"s3cr3t-value" not in content
    assert (tmp_path / "wandb_run_id").read_text().strip() in files[0].name
    assert voice.said == [
        f"wandb is offline (no API key is set); upload with: wandb sync {files[0].parent}",
    ]


class FakeRun:
    def __init__(self, log_error: Exception | None = None, finish_s: float = 0.0) -> None:
        self.log_error, self.finish_s = log_error, finish_s
        self.rows: list[dict[str, Any]] = []
        self.metrics: list[tuple[str, dict[str, Any]]] = []
        self.ended: list[str] = []
        self.settings = type("S", (), {"sync_dir": "wandb/offline-run-x"})()

    def define_metric(self, name: str, **kwargs: Any) -> None:
        self.metrics.append((name, kwargs))

    def log(self, row: dict[str, Any]) -> None:
        if self.log_error:
            raise self.log_error
        self.rows.append(row)

    def mark_preempting(self) -> None:
        self.ended.append("preempting")

    def finish(self, exit_code: int) -> None:
        time.sleep(self.finish_s)
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


def test_the_run_is_told_what_it_needs(
    tmp_path: Path, row: Row, report: StepReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, voice = FakeRun(), Voice()
    calls = patch_init(monkeypatch, run)
    sink = make_sink(tmp_path, voice, WandbMode.online)
    sink.start(1)
    sink.advance(1)
    sink.write(row, report)
    sink.end(FINISHED)
    assert (calls[0]["mode"], calls[0]["resume"], calls[0]["group"]) == ("online", "allow", "tiny")
    assert calls[0]["tags"] == ["mine", "pp1_tp1_dp1"]
    assert calls[0]["config"]["api_key"] == "<redacted>"
    assert ("*", {"step_metric": "step"}) in run.metrics
    assert run.rows == [row]
    assert run.ended == ["finish 0"]
    assert voice.said == []


def test_a_resumed_run_continues_its_wandb_run_and_a_fresh_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = patch_init(monkeypatch, FakeRun())
    for first_step in (1, 4, 1):
        make_sink(tmp_path, Voice(), WandbMode.online).start(first_step)
    ids = [call["id"] for call in calls]
    assert ids[0] == ids[1] != ids[2]


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


def test_a_start_that_explodes_switches_off_with_one_warning(
    tmp_path: Path, row: Row, report: StepReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice = Voice()
    patch_init(monkeypatch, RuntimeError("no service"))
    sink = make_sink(tmp_path, voice)
    sink.start(1)
    sink.write(row, report)
    sink.end(FINISHED)
    assert len(voice.warned) == 1
    assert "no service" in voice.warned[0]
    assert voice.said == []


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
    assert len(voice.warned) == 1
    assert run.ended == []


def test_a_finish_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voice = Voice()
    patch_init(monkeypatch, FakeRun(finish_s=5.0))
    monkeypatch.setattr(wandb_sink, "_FINISH_S", 0.1)
    sink = make_sink(tmp_path, voice)
    sink.start(1)
    started = time.perf_counter()
    sink.end(FINISHED)
    assert time.perf_counter() - started < 2
    assert "TimeoutError" in voice.warned[0]


def test_disabled_does_nothing(tmp_path: Path, row: Row, report: StepReport, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, voice = patch_init(monkeypatch, FakeRun()), Voice()
    sink = make_sink(tmp_path, voice, WandbMode.disabled)
    sink.start(1)
    sink.write(row, report)
    sink.end(FINISHED)
    assert (calls, voice.said, voice.warned) == ([], [], [])
    assert list(tmp_path.iterdir()) == []
