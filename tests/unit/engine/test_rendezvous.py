from __future__ import annotations

import re
import socket
import threading
import time

import pytest
from torch._C._distributed_c10d import Store, TCPStore

from trainer.engine import rendezvous
from trainer.engine.rendezvous import Place, meet
from trainer.errors import ConfigError, PeerLostError
from trainer.launcher.start import free_port
from trainer.topology.muster import LonelyError


def place(rank: int, size: int, port: int, host: str = "127.0.0.1") -> Place:
    return Place(rank, size, host, port)


def test_ranks_that_come_one_after_the_other_meet() -> None:
    port, stores = free_port(), {}

    def join(rank: int) -> None:
        stores[rank], _ = meet(place(rank, 3, port), 30)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in (2, 1, 0)]
    for thread in threads:
        thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join(30)
    stores[0].set("key", "value")
    assert stores[2].get("key") == b"value"


def _waits_in_vain(here: Place) -> None:
    with pytest.raises(PeerLostError):
        meet(here, 3)


def test_a_rank_that_does_not_come_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "FIRST_WORD_S", 0.3)
    port = free_port()
    other = threading.Thread(target=_waits_in_vain, args=(place(1, 3, port),))
    other.start()
    with pytest.raises(
        PeerLostError, match=r"within 2 s \(runtime\.timeout_s\), but rank 0 waited in vain for rank 2 of 3"
    ):
        meet(place(0, 3, port), 2)
    other.join(30)
    assert not other.is_alive()
    assert re.search("^rank 0 waits for rank(s 1,)? 2 of 3 to join, since [0-9]+ s$", capsys.readouterr().out, re.M)


@pytest.mark.parametrize(
    ("host", "reason"), [("127.0.0.1", "Connection refused"), ("nowhere.invalid", "Name or service")]
)
def test_a_rank_0_that_is_nowhere_is_named_with_the_reason(host: str, reason: str) -> None:
    started = time.monotonic()
    with pytest.raises(PeerLostError, match=rf"rank 1 waited in vain for rank 0 at {host}:\d+ \({reason}"):
        meet(place(1, 2, free_port(), host), 1)
    assert time.monotonic() - started < 30


def test_a_store_that_goes_away_is_a_lost_peer() -> None:
    port = free_port()
    server: list[Store] = [TCPStore("127.0.0.1", port, 2, is_master=True, wait_for_workers=False)]
    threading.Timer(0.5, server.clear).start()
    with pytest.raises(PeerLostError):
        meet(place(1, 2, port), 20)


def test_two_runs_on_one_port_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        with pytest.raises(ConfigError, match="is in use there"):
            meet(place(0, 2, other.getsockname()[1]), 5)


@pytest.mark.parametrize(
    ("host", "port", "problem"),
    [
        ("", "29500", "but MASTER_ADDR, the host of rank 0, is not set"),
        ("node", "", "MASTER_PORT must be a port number, 1 to 65535, but is ''"),
        ("node", "http", "but is 'http'"),
        ("node", "65536", "but is '65536'"),
        ("node", "0", "but is '0'"),
    ],
)
def test_a_place_that_is_none(host: str, port: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": host, "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=problem):
        Place.of_environment()


def test_another_program_that_listens_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "FOREIGN_S", 1.0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(LonelyError, match=r"is another program; set another MASTER_PORT"):
            meet(place(1, 2, other.getsockname()[1]), 30)
