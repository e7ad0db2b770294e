"""Documents that do not see each other (`data.mask_documents`) against whole sequences, on the device at hand."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.arena import Contender, ContenderFailed, Running
from benchmarks.case import TINY, Case
from benchmarks.contest import load_average, written
from benchmarks.record import table
from benchmarks.settings import Settings
from trainer.log import say

LENGTHS = (256, 1024, 2048)
PARTS = (4, 16, 64)
"""Documents have a 4th, a 16th or a 64th of a sequence in the mean."""


def documents(settings: Settings) -> Path:
    """Measure attention in each way, and forward and backward of the model, in one process; ways take turns."""
    before = load_average()
    cases = cases_of(settings)
    options = {
        "cases": [case.to_dict() for case in cases],
        "parts": PARTS,
        "warmup": min(settings.warmup, 3),
        "repeats": settings.rounds,
    }
    contender = Contender("documents", "documents", cases[0], options, threads=settings.threads, site=settings.site)
    with tempfile.TemporaryDirectory(prefix="benchmark_logs_") as folder:
        rows = _measured(contender, cases, Path(folder))
    body = {"load_average_before": before, "device": cases[0].device, "options": options, "rows": rows}
    return written("documents", settings.case.name, body, shown(rows), settings)


def cases_of(settings: Settings) -> list[Case]:
    """Return the case with sequences of several lengths and as many tokens at once; the tiny one as it is."""
    case = settings.case
    if case.seq_length == TINY.seq_length:
        return [case]
    tokens = case.tokens_in_micro_batch
    return [
        replace(case, seq_length=length, micro_batch_size=count, global_batch_size=count)
        for length in LENGTHS
        for count in [max(1, tokens // length)]
    ]


def _measured(contender: Contender, cases: Sequence[Case], logs: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    try:
        running = Running(contender, logs)
        try:
            for case in cases:
                found += running.turn(1).extras["rows"]
                say(f"{case.seq_length} tokens: {len(found)} rows")
        finally:
            running.close()
    except ContenderFailed as error:
        say(f"documents: {error}")
        found.append({"what": "all", "failed": str(error)})
    return found


def shown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table: milliseconds by way, and how many times as fast as unmasked the chosen way is."""
    ways = ("unmasked", "slices", "mask", "as chosen")
    head = ["what", "seq", "batch", "mean document", *(f"{way}, ms" for way in ways), "way", "speed of unmasked"]
    cells = []
    for row in rows:
        facts = [str(row.get(key, "-")) for key in ("what", "seq", "batch")]
        if "failed" in row:
            cells.append([*facts, f"failed: {row['failed']}", *["-"] * (len(head) - 4)])
            continue
        ratio = row["ratios"]["as chosen"]
        times = [f"{row['ms'][way]:.2f}" if way in row["ms"] else "-" for way in ways]
        speed = f"{ratio['median']:.2f} ({ratio['least']:.2f} .. {ratio['most']:.2f})"
        cells.append([*facts, f"{row['mean_length']:.0f}", *times, row["way"], speed])
    return table(cells, head)
