"""The network device on which ranks of other machines reach this one. No torch.

gloo listens at the address of the machine's own name. On Debian and its like that is the loopback device (127.0.1.1),
to which no other machine can connect.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from contextlib import suppress

import psutil

INTERFACE_VARIABLE = "GLOO_SOCKET_IFNAME"
_ANYWHERE = "192.0.2.1"
"""An address that belongs to nobody (RFC 5737): the way to it is the default route. Nothing is sent."""


def interface_for_peers(master: str) -> str | None:
    """Return the device that gloo must be told to use, or None if it finds the right one, or none can be found.

    Args:
        master: host of rank 0, as the environment names it.
    """
    if not _is_loopback(_resolved(socket.gethostname())):
        return None
    return device_towards(master)


def device_towards(master: str) -> str | None:
    """Return the device that leads to other machines, or None if there is none, or it cannot be told.

    Args:
        master: host of rank 0; empty if it is not known.
    """
    devices = _devices()
    # On rank 0's own machine the way to it is the loopback device as well.
    for target in (master, _ANYWHERE):
        found = devices.get(_own_address_towards(target))
        if found is not None:
            return found
    names = set(devices.values())
    return names.pop() if len(names) == 1 else None


def place_of_own_name() -> tuple[str, str]:
    """Return the address of this machine's own name and its device: two empty texts if it leads to no other machine.

    The device is empty too where the address belongs to another machine, as a stale entry of /etc/hosts may say.
    """
    address = _resolved(socket.gethostname())
    return ("", "") if _is_loopback(address) else (address, _devices().get(address, ""))


def _resolved(host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        # A name without an address is as useless to gloo as one that leads to this machine alone.
        return "127.0.0.1"


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _own_address_towards(host: str) -> str:
    """Return the address that packets to `host` would carry as their sender; empty if there is no route."""
    with suppress(OSError):
        for family, kind, protocol, _, target in socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(target)
                return str(probe.getsockname()[0])
    return ""


def _devices() -> Mapping[str, str]:
    """Return address -> device, for the devices that are up and lead to other machines."""
    states = psutil.net_if_stats()
    return {
        address.address: name
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family in (socket.AF_INET, socket.AF_INET6)
        and states[name].isup
        and not _is_loopback(address.address)
    }
