"""The meeting of a run's ranks: a wait that says for whom it waits, and that ends."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from trainer.errors import ConfigError, PeerLostError, first_line
from trainer.log import tell
from trainer.progress import JOINING, current
from trainer.topology.muster import Agreed, Facts, LonelyError, Member, Refusal, agree

FIRST_WORD_S = 10.0
"""Seconds of waiting after which the user is told."""
WORD_S = 60.0
"""Seconds after which the user is told again, each time."""
_POLL_S = 0.2
_CONNECT_S = 5.0
FOREIGN_S = 30.0
"""Seconds after which a listener that does not answer is no rank 0."""


@dataclass(frozen=True)
class Place:
    """The place at which ranks meet, and this process's place among them."""

    rank: int
    size: int
    host: str
    port: int
    local_rank: int = 0
    is_served_by_agent: bool = False
    """True if torchrun's agent listens there; else rank 0 does."""
    attempt: str = ""
    """Separates the entries of torchrun's attempts in one store. A machine that took the place of a lost one counts its
    attempts anew, so it is empty if every attempt has a store of its own."""

    @classmethod
    def of_environment(cls) -> Place:
        """Read the variables that launchers set.

        Raises:
            ConfigError: something is missing, or is no number.
        """
        host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
        if not host:
            raise ConfigError(
                "the ranks of a world must know where to meet, but MASTER_ADDR, the host of rank 0, is not set; have "
                "the launcher set it for every rank"
            )
        if not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise ConfigError(f"MASTER_PORT must be a port number, 1 to 65535, but is {port!r}")
        is_served_by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return cls(
            rank=int(os.environ["RANK"]),
            size=int(os.environ["WORLD_SIZE"]),
            host=host,
            port=int(port),
            local_rank=int(os.environ.get("LOCAL_RANK") or 0),
            is_served_by_agent=is_served_by_agent,
            attempt=os.environ.get("TORCHELASTIC_RESTART_COUNT", "") if is_served_by_agent else "",
        )

    @property
    def serves(self) -> bool:
        """True if this rank is the one that listens."""
        return self.rank == 0 and not self.is_served_by_agent


def meet(place: Place, timeout_s: float, said: Facts | Refusal | None = None) -> tuple[Store, Agreed]:
    """Return the store of the run when every rank has joined and all agree. Collective over the world.

    Args:
        place: the place at which ranks meet.
        timeout_s: seconds within which the others must come.
        said: the facts that must be the same on every rank, or the reason why this one cannot take part.

    Raises:
        ConfigError: the port is in use.
        DisagreementError: the ranks do not agree, or one cannot take part.
        LonelyError: this rank's place is taken in a run that has begun.
        PeerLostError: a rank did not come within `timeout_s` seconds; it is named, as far as this rank can know.
    """
    with current().during(JOINING):
        waiting = _Waiting(place, timeout_s)
        store = _served(place, timeout_s) if place.serves else _connected(place, waiting)
        try:
            store = PrefixStore(f"trident/{place.attempt}", store)
            member = Member(place.rank, place.size, socket.gethostname(), os.getpid())
            return store, agree(store, member, said or {}, waiting.until)
        except dist.DistError as error:
            raise _lost(place, error) from error


def _served(place: Place, timeout_s: float) -> Store:
    try:
        return TCPStore(
            place.host,
            place.port,
            place.size,
            is_master=True,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except dist.DistError as error:
        if "EADDRINUSE" not in str(error):
            raise ConfigError(
                f"rank 0 must be able to listen at MASTER_ADDR:MASTER_PORT, but {place.host}:{place.port}: "
                f"{first_line(error)}"
            ) from error
        raise ConfigError(
            "the ranks must meet at a port that is free on the first machine, but "
            f"MASTER_PORT={place.port} is in use there; set another one, with the launcher's option for it where it "
            "has one",
            hints=["another run meets there, or another process of this run has RANK=0 as well"],
        ) from error


def _connected(place: Place, waiting: _Waiting) -> Store:
    reason = "no answer"

    def answers() -> bool:
        nonlocal reason
        try:
            with socket.create_connection((place.host, place.port), timeout=_CONNECT_S):
                return True
        except OSError as error:
            reason = error.strerror or str(error)
            return False

    who = "torchrun" if place.is_served_by_agent else "rank 0"
    waiting.until(answers, lambda: f"{who} at {place.host}:{place.port} ({reason})")
    return _opened(place, waiting)


def _opened(place: Place, waiting: _Waiting) -> Store:
    """Return the store at the place. Opened in a thread: another server may leave torch waiting for ever."""
    found: list[Store] = []
    failed: list[BaseException] = []

    def open_store() -> None:
        try:
            limit = timedelta(seconds=max(waiting.left_s(), 1.0))
            found.append(
                TCPStore(place.host, place.port, place.size, is_master=False, timeout=limit, wait_for_workers=False)
            )
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=open_store, name="rendezvous", daemon=True)
    thread.start()
    thread.join(min(FOREIGN_S, max(waiting.left_s(), 1.0)))
    if failed and isinstance(failed[0], dist.DistError):
        raise _lost(place, failed[0]) from failed[0]
    if failed:
        raise failed[0]
    if not found:
        raise LonelyError(
            f"ranks must meet where rank 0 of their run listens, but what answers at {place.host}:{place.port} "
            "(MASTER_ADDR:MASTER_PORT) is another program; set another MASTER_PORT on every rank"
        )
    return found[0]


class _Waiting:
    """Waits until a condition holds, says so now and then, and gives up."""

    def __init__(self, place: Place, timeout_s: float) -> None:
        self._place, self._timeout_s = place, timeout_s
        self._since = time.monotonic()
        self._next_word = self._since + FIRST_WORD_S

    def left_s(self) -> float:
        """Return the seconds that are left."""
        return self._timeout_s - (time.monotonic() - self._since)

    def until(self, holds: Callable[[], bool], what: Callable[[], str]) -> None:
        """Return when `holds` does.

        Raises:
            PeerLostError: the time is over; `what` returns what this rank waited for.
        """
        while not holds():
            now = time.monotonic()
            if self.left_s() <= 0:
                raise PeerLostError(
                    f"every rank must join within {self._timeout_s:g} s (runtime.timeout_s), but rank "
                    f"{self._place.rank} waited in vain for {what()}",
                    hints=[
                        "see whether every rank was started, and can reach MASTER_ADDR:MASTER_PORT, "
                        f"{self._place.host}:{self._place.port}",
                        "a process that is to train alone must not have RANK, WORLD_SIZE or a launcher's variables of "
                        "another program in its environment",
                    ],
                )
            # One rank of a machine speaks for all of them.
            if now >= self._next_word and self._place.local_rank == 0:
                tell(f"rank {self._place.rank} waits for {what()}, since {now - self._since:.0f} s")
                self._next_word = now + WORD_S
            current().beat()
            time.sleep(_POLL_S)


def _lost(place: Place, error: BaseException) -> PeerLostError:
    return PeerLostError(
        f"every rank must live until the run ends, but the one that listens at {place.host}:{place.port} was lost: "
        f"{first_line(error)}",
        hints=["start the same command again on every machine"],
    )
