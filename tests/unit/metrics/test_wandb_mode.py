from __future__ import annotations

import socket
import time
import urllib.request
from pathlib import Path

import pytest

from tests.helpers.hang import Hang
from trainer.config.schema import WandbMode
from trainer.metrics import wandb_mode
from trainer.metrics.bounded import bounded
from trainer.metrics.wandb_mode import WandbChoice, choose_mode, has_api_key, is_reachable

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


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"WANDB_MODE": "dryrun"}, "WANDB_MODE=dryrun"),
        ({"WANDB_MODE": "disabled"}, "logging.wandb=offline"),
        ({"WANDB_MODE": "bogus"}, "logging.wandb=offline"),
        ({}, "logging.wandb=offline"),
    ],
)
def test_the_reason_is_whoever_asked(environ: dict[str, str], reason: str, home: dict[str, str]) -> None:
    assert choose_mode(WandbMode.offline, {**home, **environ}, never).reason == reason


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


@pytest.mark.parametrize("url", ["http://[::1", "https://host:99999", "http://host:port"])
def test_what_is_no_address_is_not_reachable_and_no_reason_to_stop(url: str, home: dict[str, str]) -> None:
    assert not is_reachable(url)
    choice = choose_mode(WandbMode.auto, {**home, **KEY, "WANDB_BASE_URL": url})
    assert choice.mode is WandbMode.offline
    assert url in choice.reason


def test_behind_a_proxy_it_is_the_proxy_that_must_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        proxy = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(urllib.request, "getproxies", lambda: {"https": proxy})
        monkeypatch.setattr(urllib.request, "proxy_bypass", lambda host: False)
        assert is_reachable("https://wandb.invalid")


@pytest.mark.usefixtures("no_proxy")
def test_a_slow_name_look_up_is_given_up(monkeypatch: pytest.MonkeyPatch, hang: Hang) -> None:
    monkeypatch.setattr(wandb_mode, "_PROBE_S", 0.1)
    monkeypatch.setattr(socket, "create_connection", hang)
    assert not is_reachable("https://api.wandb.ai")
    assert not hang.has_returned


def test_bounded_returns_raises_and_gives_up() -> None:
    assert bounded(lambda: 7, 5.0) == 7
    with pytest.raises(ZeroDivisionError):
        bounded(lambda: 1 // 0, 5.0)
    with pytest.raises(TimeoutError):
        bounded(lambda: time.sleep(5), 0.05)
    with pytest.raises(RuntimeError, match="SystemExit"):
        bounded(lambda: exit(3), 5.0)
