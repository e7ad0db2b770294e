"""Run a function on several ranks, forked from this warm process: torch and deepspeed are imported once.

A failing rank fails the test with its traceback; a rank that does not end in time fails it with every rank's stack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trainer.engine.warm_start import warm_up
from trainer.proving.forked_ranks import RanksFailed, run_forked


def run_distributed(fn: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120) -> list[Any]:
    """Return `[fn(rank, world_size, *args) for every rank]`, each computed in a rank of its own on gloo.

    Raises:
        AssertionError: a rank failed, or did not end within `timeout_s` seconds.
    """
    warm_up()
    try:
        return run_forked(fn, world_size, *args, timeout_s=timeout_s)
    except RanksFailed as failed:
        raise AssertionError(f"{failed}\n{failed.details}") from None


def train_command(rank: int, world_size: int, words: Sequence[str]) -> int:
    """Run `trident train <words>` as a rank that a launcher started; return its exit code."""
    from trainer.cli import main

    return main(["train", *words])
