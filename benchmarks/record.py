"""The record of a benchmark: one dated JSON file with everything, and a table for people. No torch."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.arena import Record
from benchmarks.figures import paired, spread
from benchmarks.machine import commit_of, machine

RESULTS = Path(__file__).parent / "results"
_PATH = re.compile(r"(?<![\w/.>-])/(?:[\w.+@-]+/)*[\w.+@-]+")
"""An absolute path: not the slash of tokens/s, and not that of an address."""


def contender_record(record: Record, steps: int, base: Record | None) -> dict[str, Any]:
    """Return one contender as plain values, with its ratio to `base`, turn against turn."""
    contender = record.contender
    values: dict[str, Any] = {
        "name": contender.name,
        "kind": contender.kind,
        "options": dict(contender.options),
        "case": contender.case.to_dict(),
        "ranks": contender.ranks,
        "threads_per_rank": contender.threads,
    }
    if contender.root is not None:
        values["revision"] = commit_of(Path(contender.root))
    if record.reason is not None:
        return {**values, "skipped": record.reason}
    values |= {
        "facts": dict(record.facts),
        "start_seconds": round(record.start_seconds, 2),
        "first_losses": record.losses,
        "loss_error": record.loss_error,
        "turn_seconds": [round(turn.seconds, 4) for turn in record.turns],
        "extras": [dict(turn.extras) for turn in record.turns if turn.extras],
        "tokens_per_second": spread(record.rates(steps)).to_dict(),
    }
    if base is not None and base.reason is None and base is not record:
        work = contender.case.tokens_per_step / base.contender.case.tokens_per_step
        pairs = paired([t.seconds for t in record.turns], [t.seconds for t in base.turns], work)
        values["ratio"] = {"to": base.contender.name, **pairs.to_dict()}
    return values


def table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    """Return a Markdown table."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)])


def speed_table(contenders: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of contenders that `contender_record` made."""
    rows = []
    for one in contenders:
        place = f"{one['ranks']} x {one['threads_per_rank']}"
        if "skipped" in one:
            rows.append([one["name"], place, "-", "-", "-", f"skipped: {one['skipped']}"])
            continue
        rate, ratio = one["tokens_per_second"], one.get("ratio")
        rows.append(
            [
                one["name"],
                place,
                f"{rate['median']:,.0f}",
                f"{rate['least']:,.0f} .. {rate['most']:,.0f}",
                f"{ratio['median']:.3f} ({ratio['least']:.2f} .. {ratio['most']:.2f})" if ratio else "1",
                f"loss {one['loss_error']:.0e}",
            ]
        )
    head = ["contender", "ranks x threads", "tokens/s, median", "least .. most", "paired ratio (range)", "check"]
    return table(rows, head)


def save(
    suite: str,
    name: str,
    body: Mapping[str, Any],
    text: str,
    folder: Path | None = None,
    site: str | None = None,
) -> Path:
    """Write `<date>_<suite>_<name>.json` and `.md`; return the path of the first."""
    now = datetime.now(UTC)
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    facts = machine(site)
    whole = {
        "suite": suite,
        "date": now.isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "machine": facts,
        "load_average_after": [round(load, 2) for load in os.getloadavg()],
        **body,
    }
    whole = impersonal(whole)
    path = folder / f"{now:%Y-%m-%d_%H%M%S}_{suite}_{name}.json"
    path.write_text(json.dumps(whole, indent=1) + "\n")
    header = f"# {suite} {name}, {now:%Y-%m-%d}\n\n`{whole['command']}` on {facts['cores']} cores of {facts['cpu']}"
    busy = f"load average {body.get('load_average_before', ['?'])[0]} before, {whole['load_average_after'][0]} after"
    path.with_suffix(".md").write_text(impersonal(f"{header}, commit {facts['commit']}, {busy}.\n\n{text}\n"))
    return path


def impersonal(value: Any) -> Any:
    """Return plain values with `<path>` and `<host>` in place of this machine's absolute paths and its name."""
    if isinstance(value, str):
        host = socket.gethostname()
        named = re.sub(rf"\b{re.escape(host)}\b", "<host>", value) if len(host) > 3 else value
        return _PATH.sub("<path>", named)
    if isinstance(value, Mapping):
        return {key: impersonal(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [impersonal(one) for one in value]
    return value
