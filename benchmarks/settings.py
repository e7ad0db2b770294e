"""Settings of a contest: its length, and its contenders. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.arena import Contender
from benchmarks.case import CPU, Case
from trainer.errors import TridentError


class UsageError(TridentError):
    """The command line is wrong."""

    exit_code = 2


@dataclass(frozen=True)
class Settings:
    """Length and contenders of a contest."""

    case: Case = CPU
    rounds: int = 12
    steps: int = 1
    """Optimizer steps in a turn."""
    warmup: int = 12
    only: tuple[str, ...] = ()
    """Names of the contenders to take part, or of parts of `kernels` or `data`; empty: all. The base always does."""
    site: str | None = None
    results: Path | None = None
    threads: int = 2
    """CPU threads of one process; layouts share them out."""
    variants: tuple[str, ...] = ()
    """Words after `trident train`, one string a contender of the suite `variants`."""
    dry: bool = False
    """gpu, kernels: the same code with a tiny model on the CPU."""
    models: tuple[str, ...] = ()
    """gpu, kernels: sizes; empty: all."""
    seq_lengths: tuple[int, ...] = ()
    """gpu, kernels: tokens in a sequence; empty: all."""
    megabytes: int = 200
    """data: size of the text that is tokenised, in millions of bytes; other sizes of the suite are in proportion."""


def chosen(contenders: Sequence[Contender], settings: Settings, base: str) -> list[Contender]:
    """Return those that take part, with the folder of further packages.

    Raises:
        UsageError: a name is unknown.
    """
    known = [contender.name for contender in contenders]
    check_known(settings.only, known, "--only", "contender")
    wanted = [c for c in contenders if not settings.only or c.name in settings.only or c.name == base]
    return [replace(contender, site=settings.site) for contender in wanted]


def check_known(names: Sequence[str], known: Sequence[str], option: str, what: str) -> None:
    """Raise if one of the names does not exist.

    Raises:
        UsageError: which, and what exists.
    """
    for name in names:
        if name not in known:
            raise UsageError(f"{option}: there is no {what} {name!r}; choose from {'; '.join(known)}")
