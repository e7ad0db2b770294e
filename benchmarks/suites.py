"""What each suite lets compete, and the table that it prints."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.arena import FP32, HALF, Contender, Record, compete
from benchmarks.case import CPU, Case
from benchmarks.record import contender_record, save, speed_table, table
from trainer.log import say


@dataclass(frozen=True)
class Settings:
    """How long and with whom."""

    case: Case = CPU
    rounds: int = 12
    steps: int = 1
    """Optimizer steps in a turn."""
    warmup: int = 12
    only: tuple[str, ...] = ()
    """Names of the contenders to take part; empty: all. The first always does."""
    site: str | None = None
    results: Path | None = None
    threads: int = 2
    """Of one process; layouts share them out."""
    variants: tuple[str, ...] = ()
    """Words after `trident train`, one string a contender of the suite `variants`."""


def chosen(contenders: Sequence[Contender], settings: Settings) -> list[Contender]:
    """Return those that take part.

    Raises:
        SystemExit: a name is unknown.
    """
    known = [contender.name for contender in contenders]
    unknown = [name for name in settings.only if name not in known]
    if unknown:
        raise SystemExit(f"error: there is no contender {unknown[0]!r}; choose from {', '.join(known)}")
    wanted = [c for c in contenders if not settings.only or c.name in settings.only or c is contenders[0]]
    return [replace(contender, site=settings.site) for contender in wanted]


def held(
    suite: str,
    settings: Settings,
    contenders: Sequence[Contender],
    base: str,
    more: Callable[[Sequence[Record]], tuple[Mapping[str, Any], str]] | None = None,
) -> Path:
    """Let contenders compete; print the table with ratios to `base`, and write the record."""
    before = [round(load, 2) for load in os.getloadavg()]
    with tempfile.TemporaryDirectory(prefix="benchmark_logs_") as logs:
        records = compete(
            chosen(contenders, settings),
            Path(logs),
            rounds=settings.rounds,
            steps=settings.steps,
            warmup=settings.warmup,
            tolerance=FP32 if settings.case.dtype == "fp32" else HALF,
            say=say,
        )
    against = next((record for record in records if record.contender.name == base), None)
    values = [contender_record(record, settings.steps, against) for record in records]
    text = speed_table(values)
    body: dict[str, Any] = {
        "load_average_before": before,
        "rounds": settings.rounds,
        "steps_in_a_turn": settings.steps,
        "warmup_steps": settings.warmup,
        "base": base,
        "contenders": values,
    }
    if more is not None:
        further, shown = more(records)
        body |= further
        text += f"\n\n{shown}" if shown else ""
    path = save(suite, settings.case.name, body, text, settings.results)
    say(f"\n{text}\n\nwrote {path}")
    return path


def single(settings: Settings) -> Path:
    """Trident against its peers, one process each, ratios to the plain loop."""
    case, threads = settings.case, settings.threads

    def one(name: str, kind: str, **options: Any) -> Contender:
        return Contender(name, kind, case, options, threads=threads)

    contenders = [
        one("plain loop", "plain") if case.family == "gpt2" else one("transformers Trainer", "transformers_trainer"),
        one("trident", "trident"),
        *([one("transformers Trainer", "transformers_trainer")] if case.family == "gpt2" else []),
        one("plain loop, fused AdamW + compile", "plain", compile=True, fused=True),
        one("transformers Trainer + DeepSpeed", "transformers_trainer", deepspeed=True),
        one("Lightning", "lightning_trainer"),
        one("litgpt", "litgpt_gpt"),
        one("torchtitan", "torchtitan_llama"),
        one("megatron-core", "megatron_core"),
    ]
    return held("single", settings, contenders, contenders[0].name)


def _layout(name: str, case: Case, ranks: int, threads: int, *words: str) -> Contender:
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
        _layout("1 process", case, 1, threads),
        _layout("DP2", each, 2, half, "layout=dp2"),
        _layout("TP2", case, 2, half, "layout=tp2"),
        _layout("TP2 + sequence parallel", case, 2, half, "layout=tp2_sp"),
        _layout("PP2, 8 micro-batches", ones, 2, half, "layout=pp2"),
        _layout("PP2 DualPipeV, 8 micro-batches", ones, 2, half, "layout=pp2_dualpipev"),
        _layout("1 process, 8 micro-batches", ones, 1, threads),
        _layout("1 process, half the threads, half the batch", small, 1, half),
    ]

    def more(records: Sequence[Record]) -> tuple[Mapping[str, Any], str]:
        by_name = {record.contender.name: record for record in records if record.reason is None}
        return _weak(by_name, settings.steps)[0], "\n\n".join(
            part for part in (_bubbles(records), _weak(by_name, settings.steps)[1]) if part
        )

    return held("layouts", settings, contenders, "1 process", more)


def _bubbles(records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        measured = [turn.extras["bubble_fraction"] for turn in record.turns if "bubble_fraction" in turn.extras]
        if measured:
            case, p = record.contender.case, record.contender.ranks
            m = case.global_batch_size // case.micro_batch_size
            theory = (p - 1) / (m + p - 1)
            rows.append([record.contender.name, f"{sorted(measured)[len(measured) // 2]:.3f}", f"{theory:.3f}"])
    return table(rows, ["pipeline", "bubble measured (median)", "(p - 1) / (m + p - 1)"]) if rows else ""


def _weak(by_name: Mapping[str, Record], steps: int) -> tuple[dict[str, Any], str]:
    """Weak scaling: two replicas with half the threads each against one such process with half the batch."""
    one, two = by_name.get("1 process, half the threads, half the batch"), by_name.get("DP2")
    if one is None or two is None:
        return {}, ""
    ratio = [b.seconds / a.seconds for a, b in zip(two.turns, one.turns, strict=True)]
    middle = sorted(ratio)[len(ratio) // 2]
    return {
        "weak_scaling_dp2": ratio
    }, f"Weak scaling: DP2 keeps {middle:.3f} of one replica's speed (median of pairs)."


def stock(settings: Settings) -> Path:
    """Trident against the same model in stock DeepSpeed, layout by layout."""
    case, threads = settings.case, settings.threads
    half = max(1, threads // 2)
    ones = replace(case, micro_batch_size=max(1, case.global_batch_size // 8))
    each = replace(case, micro_batch_size=max(1, case.global_batch_size // 2))

    def theirs(name: str, which: Case, ranks: int, per_rank: int, pp: int) -> Contender:
        return Contender(name, "stock_deepspeed", which, {"pipeline_parallel_size": pp}, ranks=ranks, threads=per_rank)

    contenders = [
        _layout("trident PP2", ones, 2, half, "layout=pp2"),
        theirs("stock PP2", ones, 2, half, 2),
        _layout("trident DP2", each, 2, half, "layout=dp2"),
        theirs("stock DP2", each, 2, half, 1),
        _layout("trident 1 process", case, 1, threads),
        theirs("stock 1 process", case, 1, threads, 1),
    ]

    def more(records: Sequence[Record]) -> tuple[Mapping[str, Any], str]:
        by_name = {record.contender.name: record for record in records if record.reason is None}
        rows, ratios = [], {}
        for layout in ("PP2", "DP2", "1 process"):
            ours, theirs_ = by_name.get(f"trident {layout}"), by_name.get(f"stock {layout}")
            if ours is None or theirs_ is None:
                continue
            pairs = sorted(b.seconds / a.seconds for a, b in zip(ours.turns, theirs_.turns, strict=True))
            ratios[layout] = pairs
            rows.append([layout, f"{pairs[len(pairs) // 2]:.3f}", f"{pairs[0]:.2f} .. {pairs[-1]:.2f}"])
        return {"trident_over_stock": ratios}, table(rows, ["layout", "Trident / stock, median of pairs", "range"])

    return held("stock", settings, contenders, "trident 1 process", more)


def variants(settings: Settings) -> Path:
    """Trident against itself with other settings, or another revision (`root=FOLDER`), ratios to the first.

    `ranks=N` and `threads=N` say how a variant is started.
    """
    case = settings.case
    contenders = []
    for words in settings.variants or ("",):
        given = dict(word.partition("=")[::2] for word in words.split() if word.startswith(_START))
        overrides = [word for word in words.split() if not word.startswith(_START)]
        contenders.append(
            Contender(
                words.strip() or "defaults",
                "trident",
                case,
                {"overrides": overrides},
                ranks=int(given.get("ranks", 1)),
                threads=int(given.get("threads", settings.threads)),
                root=given.get("root"),
            )
        )
    return held("variants", settings, contenders, contenders[0].name)


_START = ("ranks=", "threads=", "root=")
