"""Layouts of two ranks against one process: strong and weak scaling, and the bubble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.arena import Contender, Record
from benchmarks.case import Case
from benchmarks.contest import held
from benchmarks.figures import paired
from benchmarks.record import table
from benchmarks.settings import Settings


def layout(name: str, case: Case, ranks: int, threads: int, *words: str) -> Contender:
    """Return Trident with some ranks and further overrides."""
    extra = ("runtime.threads_per_rank=1",) if threads == 1 else ()
    return Contender(name, "trident", case, {"overrides": [*words, *extra]}, ranks=ranks, threads=threads)


def layouts(settings: Settings) -> Path:
    """One process with all threads against two ranks with half of them each: strong and weak scaling."""
    case, threads = settings.case, settings.threads
    half = max(1, threads // 2)
    ones = replace(case, micro_batch_size=max(1, case.global_batch_size // 8))
    each = replace(case, micro_batch_size=max(1, case.global_batch_size // 2))
    small = replace(case, global_batch_size=case.global_batch_size // 2, micro_batch_size=each.micro_batch_size)
    contenders = [
        layout("1 process", case, 1, threads),
        layout("DP2", each, 2, half, "layout=dp2"),
        layout("TP2", case, 2, half, "layout=tp2"),
        layout("TP2 + sequence parallel", case, 2, half, "layout=tp2_sp"),
        layout("PP2, 8 micro-batches", ones, 2, half, "layout=pp2"),
        layout("PP2 DualPipeV, 8 micro-batches", ones, 2, half, "layout=pp2_dualpipev"),
        layout("1 process, 8 micro-batches", ones, 1, threads),
        layout("1 process, half the threads, half the batch", small, 1, half),
    ]

    def more(records: Sequence[Record]) -> tuple[Mapping[str, Any], str]:
        bubbles, shown = _bubbles(records)
        scaling, line = _weak({record.contender.name: record for record in records if record.reason is None})
        return {**bubbles, **scaling}, "\n\n".join(part for part in (shown, line) if part)

    return held("layouts", settings, contenders, "1 process", more)


def _bubbles(records: Sequence[Record]) -> tuple[dict[str, Any], str]:
    """Return the measured bubble of every pipeline beside that of its schedule with equal stages."""
    found, rows = [], []
    for record in records:
        measured = [turn.extras["bubble_fraction"] for turn in record.turns if "bubble_fraction" in turn.extras]
        if record.reason is None and measured:
            theory = record.turns[0].extras["bubble_in_theory"]
            found.append({"name": record.contender.name, "measured": measured, "theory": theory})
            rows.append([record.contender.name, f"{median(measured):.3f}", f"{theory:.3f}"])
    head = ["pipeline", "bubble measured (median)", "in theory"]
    return {"bubbles": found}, table(rows, head) if rows else ""


def _weak(by_name: Mapping[str, Record]) -> tuple[dict[str, Any], str]:
    """Weak scaling: two replicas with half the threads each against one such process with half the batch."""
    one, two = by_name.get("1 process, half the threads, half the batch"), by_name.get("DP2")
    if one is None or two is None:
        return {}, ""
    ratio = paired([turn.seconds for turn in two.turns], [turn.seconds for turn in one.turns])
    text = f"Weak scaling: DP2 keeps {ratio.median:.3f} of one replica's speed (median of pairs)."
    return {"weak_scaling_dp2": ratio.to_dict()}, text
