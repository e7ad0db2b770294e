"""Greedy generation: tokens/s with a cache of keys and values, without one, and by `transformers.generate`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.arena import Contender, Record, Tolerance, compete
from benchmarks.contest import load_average, written
from benchmarks.figures import spread
from benchmarks.record import contender_record, table
from benchmarks.settings import Settings, check_known
from trainer.log import say

SAME = Tolerance(first=0.0, later=0.0)
"""Of checksums: the tokens are the same, or the contender is not timed."""
PEER, OURS = "transformers.generate", "trident"
TEXTS = 8


def generate(settings: Settings) -> Path:
    """Trident against `transformers.generate`, one text and several at once; ratios to the latter."""
    contenders = contenders_of(settings)
    check_known(settings.only, [one.name for one in contenders], "--only", "contender")
    wanted = [one for one in contenders if not settings.only or one.name in settings.only or one.name.startswith(PEER)]
    before = load_average()
    with tempfile.TemporaryDirectory(prefix="benchmark_logs_") as logs:
        records = compete(
            [replace(one, site=settings.site) for one in wanted],
            Path(logs),
            rounds=settings.rounds,
            steps=settings.steps,
            warmup=settings.warmup,
            tolerance=SAME,
            say=say,
        )
    values = [_values(record, records, settings.steps) for record in records]
    body = {
        "load_average_before": before,
        "rounds": settings.rounds,
        "steps_in_a_turn": settings.steps,
        "warmup_steps": settings.warmup,
        "contenders": values,
    }
    return written("generate", settings.case.name, body, generation_table(values), settings)


def contenders_of(settings: Settings) -> list[Contender]:
    """Return the contenders: for each number of texts the peer first, with which the others must agree."""
    length = settings.case.seq_length
    tokens = {"prompt": length // 8, "new": length // 2}

    def one(name: str, by: str, texts: int, cache: bool = True) -> Contender:
        case = replace(settings.case, global_batch_size=texts, micro_batch_size=texts)
        options = {"by": by, "cache": cache, "texts": texts, **tokens}
        return Contender(name, "generation", case, options, threads=settings.threads)

    return [
        one(PEER, "transformers", 1),
        one(OURS, "trident", 1),
        one(f"{OURS}, no cache", "trident", 1, cache=False),
        one(f"{PEER}, {TEXTS} texts", "transformers", TEXTS),
        one(f"{OURS}, {TEXTS} texts", "trident", TEXTS),
    ]


def _values(record: Record, records: Sequence[Record], steps: int) -> dict[str, Any]:
    options = record.contender.options
    peers = (other for other in records if other.contender.options["by"] == "transformers")
    peer = next(other for other in peers if other.contender.options["texts"] == options["texts"])
    values = contender_record(record, steps, peer)
    if record.reason is None:
        drawn = steps * options["texts"] * options["new"]
        values["tokens_per_second"] = spread([drawn / turn.seconds for turn in record.turns]).to_dict()
    return values


def generation_table(contenders: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of contenders; those that have figures wrote the same tokens."""
    rows = []
    for one in contenders:
        options = one["options"]
        facts = [one["name"], f"{options['texts']} x {options['new']}"]
        if "skipped" in one:
            rows.append([*facts, "-", "-", f"skipped: {one['skipped']}"])
            continue
        rate, ratio = one["tokens_per_second"], one.get("ratio")
        rows.append(
            [
                *facts,
                f"{rate['median']:,.0f}",
                f"{rate['least']:,.0f} .. {rate['most']:,.0f}",
                f"{ratio['median']:.2f} ({ratio['least']:.2f} .. {ratio['most']:.2f})" if ratio else "1",
            ]
        )
    return table(rows, ["contender", "texts x tokens", "tokens/s, median", "least .. most", "paired ratio (range)"])
