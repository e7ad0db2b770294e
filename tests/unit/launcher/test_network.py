from __future__ import annotations

import socket
from collections import namedtuple

import psutil
import pytest

from trainer.launcher import network
from trainer.launcher.environment import World, publish_world
from trainer.launcher.network import INTERFACE_VARIABLE, interface_for_peers

Address = namedtuple("Address", "family address")
State = namedtuple("State", "isup")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A machine with devices; its own name leads where `names` says, the way to a host goes out as `routes` says."""
    devices = {
        "lo": ("127.0.0.1", True),
        "eth0": ("10.0.0.5", True),
        "ib0": ("10.9.0.5", True),
        "old0": ("10.8.0.5", False),
    }
    names = {"here": "127.0.1.1"}
    monkeypatch.setattr(socket, "gethostname", lambda: "here")
    monkeypatch.setattr(network, "_resolved", lambda host: names[host])
    monkeypatch.setattr(
        psutil, "net_if_addrs", lambda: {name: [Address(socket.AF_INET, at)] for name, (at, _) in devices.items()}
    )
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {name: State(up) for name, (_, up) in devices.items()})
    monkeypatch.setattr(network, "_own_address_towards", lambda host: names.get(f"to {host}", ""))
    return names


def test_a_name_that_others_can_reach_is_left_to_gloo(machine: dict[str, str]) -> None:
    machine["here"] = "10.0.0.5"
    assert interface_for_peers("master") is None


def test_the_device_that_leads_to_rank_0(machine: dict[str, str]) -> None:
    machine["to master"] = "10.9.0.5"
    assert interface_for_peers("master") == "ib0"


def test_rank_0s_own_machine_takes_the_default_route(machine: dict[str, str]) -> None:
    machine["to here"] = "127.0.0.1"
    machine["to 192.0.2.1"] = "10.0.0.5"
    assert interface_for_peers("here") == "eth0"


def test_no_guess_among_several(machine: dict[str, str]) -> None:
    assert interface_for_peers("here") is None


def test_the_only_device(machine: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        psutil, "net_if_stats", lambda: {name: State(name == "eth0") for name in ("lo", "eth0", "ib0", "old0")}
    )
    assert interface_for_peers("here") == "eth0"


def test_addresses_of_this_very_machine() -> None:
    assert network._own_address_towards("127.0.0.1") == "127.0.0.1"
    assert network._own_address_towards("no.such.host.invalid") == ""
    assert network._resolved("127.0.0.1") == "127.0.0.1"
    assert network._is_loopback(network._resolved("no.such.host.invalid"))
    assert not any(network._is_loopback(address) for address in network._devices())


@pytest.mark.parametrize(
    ("local_size", "told", "chosen"),
    [(4, None, "eth7"), (4, "mine", "mine"), (8, None, None), (None, None, None)],
    ids=["several machines", "the user knows better", "one machine", "nothing is known"],
)
def test_only_ranks_of_several_machines_need_one(
    local_size: int | None, told: str | None, chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    before = dict(os.environ)
    monkeypatch.setattr("trainer.launcher.environment.interface_for_peers", lambda master: "eth7")
    try:
        os.environ["MASTER_ADDR"] = "node-0"
        os.environ.pop(INTERFACE_VARIABLE, None)
        if told:
            os.environ[INTERFACE_VARIABLE] = told
        publish_world(World(0, 0, 8, local_size))
        assert os.environ.get(INTERFACE_VARIABLE) == chosen
    finally:
        os.environ.clear()
        os.environ.update(before)
