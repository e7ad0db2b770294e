"""The hosts of a hostfile, read as DeepSpeed's launcher reads them. No torch.

Lines that DeepSpeed would accept and then start something else than was meant are refused: a byte order mark in a
host's name, a pattern that pdsh expands to several hosts, one machine under two users.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from trainer.errors import ConfigError

_NODE = re.compile(r"^(\S+)\s+slots=(\d+)")
"""DeepSpeed's own pattern, which ignores everything after the number."""
_HOST = re.compile(r"(?:[\w.-]+@)?(?P<address>[^\W_][\w.-]*|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]+(?:%[\w.-]+)?)")
"""A name or an address, perhaps with a user. pdsh takes commas and brackets for a list of hosts."""
_MEANT = re.compile(r"(?P<host>[^\s:=]+)(?:\s*:\s*|\s+)(?:(?:slots|max_slots|max-slots|cpu)\s*=\s*)?(?P<slots>\d+)\b")
"""Forms of Open MPI and MPICH, and bare numbers: only used to say how the line is written here."""


@dataclass(frozen=True)
class Node:
    """A host and the ranks that are started on it."""

    host: str
    """The host as written, perhaps with a user, as ssh and pdsh take it."""
    slots: int

    @property
    def address(self) -> str:
        """The host without a user, which other ranks connect to."""
        return self.host.rpartition("@")[2]


def read_hostfile(path: str) -> list[Node]:
    """Return the nodes in order; rank 0 is on the first.

    Raises:
        ConfigError: the file cannot be read, or a line of it is not a host with its number of ranks.
    """
    nodes: list[Node] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        node = _node(text, f"line {number} of {path}")
        # Names of machines are the same in capitals and in small letters.
        first = seen.setdefault(node.address.lower(), number)
        if first != number:
            raise ConfigError(
                f"a machine must be in {path} once, but lines {first} and {number} name {node.address}; give all its "
                "ranks in one line"
            )
        nodes.append(node)
    if not nodes:
        raise ConfigError(f"{path} must name a host, but names none; write a line 'HOST slots=RANKS' for each")
    return nodes


def master_address(nodes: Sequence[Node], path: str) -> str:
    """Return the address at which ranks of all nodes find rank 0.

    Raises:
        ConfigError: the first host is a name that leads every machine to itself.
    """
    first, *others = nodes
    if _is_loopback(first.address) and not all(_is_loopback(other.address) for other in others):
        raise ConfigError(
            f"the first host of {path} must have a name by which the others reach it, but {first.address} leads each "
            "of them to itself; write its name there, or give --master-addr"
        )
    return first.address


def own_place(nodes: Sequence[Node], path: str) -> int:
    """Return the index of the node that this machine is.

    Raises:
        ConfigError: it is none of them, or several.
    """
    name = socket.gethostname().lower()
    names = {name, *_own_addresses()}
    found = [index for index, node in enumerate(nodes) if node.address.lower() in names or _is_loopback(node.address)]
    if not found:
        short = name.partition(".")[0]
        found = [
            index
            for index, node in enumerate(nodes)
            if not _is_address(node.address) and node.address.lower().partition(".")[0] == short
        ]
    if len(found) == 1:
        return found[0]
    problem = "none names" if not found else f"{len(found)} of them name"
    raise ConfigError(f"--node-rank must say which line of {path} this node is, since {problem} {name}")


def _lines(path: str) -> list[str]:
    try:
        if path and Path(path).exists() and not Path(path).is_file():
            # DeepSpeed reads it again, and treats a path that is no plain file as no hostfile.
            raise ConfigError(f"--hostfile must name a plain file, but {path} is something else; write it to a file")
        with open(path, encoding="utf-8") as file:
            lines = file.readlines()
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise ConfigError(f"{path} must be text in UTF-8, but is not; save it as UTF-8 or plain ASCII") from error
        raise ConfigError(f"--hostfile must name a file, but {path or 'an empty name'} cannot be read") from error
    if lines and lines[0].startswith("\ufeff"):
        raise ConfigError(
            f"{path} must start with a host, but starts with a byte order mark, which becomes part of its name; "
            "save it without one"
        )
    return lines


def _node(text: str, place: str) -> Node:
    match = _NODE.search(text)
    if match is None or not _ends(text[match.end() :]):
        meant = _MEANT.match(text)
        example = f"{meant['host']} slots={meant['slots']}" if meant else f"{text.split()[0]} slots=8"
        raise ConfigError(f"{place} must read 'HOST slots=RANKS', but is {text!r}; write it as '{example}'")
    host, slots = match[1], int(match[2])
    if _HOST.fullmatch(host) is None:
        raise ConfigError(f"{place} must name one host, as NAME, ADDRESS or USER@NAME, but names {host!r}")
    if slots < 1:
        raise ConfigError(f"{place} must have slots of at least 1, but is {text!r}; put a # before a host to leave out")
    return Node(host, slots)


def _ends(rest: str) -> bool:
    """Return whether a number ends where the pattern stopped reading: DeepSpeed takes `slots=1.5` for 1."""
    return not rest or rest[0].isspace() or rest[0] == "#"


def _is_address(host: str) -> bool:
    with suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False


def _is_loopback(host: str) -> bool:
    if host.lower().partition(".")[0] == "localhost":
        return True
    return _is_address(host) and ipaddress.ip_address(host.partition("%")[0]).is_loopback


def _own_addresses() -> set[str]:
    found = [address.address for addresses in psutil.net_if_addrs().values() for address in addresses]
    # An IPv6 address is compared with its zone and without it.
    return {text.lower() for one in found for text in (one, one.partition("%")[0]) if not _is_loopback(text)}
