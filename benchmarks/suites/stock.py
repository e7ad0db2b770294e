"""Trident against stock DeepSpeed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.arena import Contender, Record
from benchmarks.case import Case
from benchmarks.contest import held
from benchmarks.figures import paired
from benchmarks.record import table
from benchmarks.settings import Settings
from benchmarks.suites.layouts import layout


def stock(settings: Settings) -> Path:
    """Trident against the same model in stock DeepSpeed, layout by layout."""
    case, threads = settings.case, settings.threads
    half = max(1, threads // 2)
    ones = replace(case, micro_batch_size=max(1, case.global_batch_size // 8))
    each = replace(case, micro_batch_size=max(1, case.global_batch_size // 2))

    def theirs(name: str, which: Case, ranks: int, per_rank: int, pp: int) -> Contender:
        return Contender(name, "stock_deepspeed", which, {"pipeline_parallel_size": pp}, ranks=ranks, threads=per_rank)

    contenders = [
        layout("trident PP2", ones, 2, half, "layout=pp2"),
        theirs("stock PP2", ones, 2, half, 2),
        layout("trident DP2", each, 2, half, "layout=dp2"),
        theirs("stock DP2", each, 2, half, 1),
        layout("trident 1 process", case, 1, threads),
        theirs("stock 1 process", case, 1, threads, 1),
    ]

    def more(records: Sequence[Record]) -> tuple[Mapping[str, Any], str]:
        by_name = {record.contender.name: record for record in records if record.reason is None}
        rows, ratios = [], {}
        for place in ("PP2", "DP2", "1 process"):
            ours, stock_ = by_name.get(f"trident {place}"), by_name.get(f"stock {place}")
            if ours is None or stock_ is None:
                continue
            ratio = paired([turn.seconds for turn in ours.turns], [turn.seconds for turn in stock_.turns])
            ratios[place] = ratio.to_dict()
            rows.append([place, f"{ratio.median:.3f}", f"{ratio.least:.2f} .. {ratio.most:.2f}"])
        text = table(rows, ["layout", "Trident / stock, median of pairs", "range"]) if rows else ""
        return {"trident_over_stock": ratios}, text

    return held("stock", settings, contenders, "trident 1 process", more)
