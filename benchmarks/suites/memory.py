"""Peak memory: by feature against theory, of the loss alone, and the largest model that one device trains."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.arena import FP32, HALF, Contender, ContenderFailed, Record, alone, train_alone
from benchmarks.case import TINY, Case
from benchmarks.contest import load_average, written
from benchmarks.figures import largest
from benchmarks.record import table
from benchmarks.settings import Settings, chosen
from trainer.config.plan import RunPlan
from trainer.log import say
from trainer.planner.own_memory import OwnMemory

MIB = 1 << 20
BASE = "defaults"
LOSS_SHAPE = {"tokens": 2048, "hidden_size": 768, "vocab_size": 50257}
"""GPT-2's vocabulary and width."""
_FEATURES: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    (BASE, 1, ()),
    ("selective recomputation", 1, ("model.recompute=selective",)),
    ("full recomputation", 1, ("model.recompute=full",)),
    ("loss not fused", 1, ("model.fused_loss=false",)),
    ("CPU offload, ZeRO-1", 1, ("zero=stage1_offload",)),
    ("DP2, ZeRO-0", 2, ("layout=dp2", "zero=stage0")),
    ("DP2, ZeRO-1", 2, ("layout=dp2", "zero=stage1")),
    ("DP2, ZeRO-2", 2, ("layout=dp2", "zero=stage2")),
    ("DP2, ZeRO-3", 2, ("layout=dp2", "zero=stage3")),
)
"""Name, ranks, and words after `trident train`."""
_WARMUP = 2
"""Steps: the first makes the optimizer's state, the second has everything."""
_PLACES: dict[str, tuple[str, ...]] = {"without offload": (), "with CPU offload": ("zero=stage1_offload",)}
_HIDDEN = 4096
_MOST_BLOCKS = 256


def memory(settings: Settings) -> Path:
    """Measure peak memory, each contender in fresh processes and alone."""
    before = load_average()
    with tempfile.TemporaryDirectory(prefix="benchmark_logs_") as folder:
        logs = Path(folder)
        features, shown = _features(settings, logs)
        loss, shown_loss = _loss(settings, logs)
        most, shown_most = _largest_models(settings, logs)
    body = {
        "load_average_before": before,
        "measured_as": "bytes that torch's allocator held" if settings.case.device == "cuda" else "resident memory",
        "features": features,
        "loss": loss,
        "largest_model": most,
    }
    text = "\n\n".join([shown, shown_loss, shown_most])
    return written("memory", settings.case.name, body, text, settings)


def _features(settings: Settings, logs: Path) -> tuple[list[dict[str, Any]], str]:
    """Return every feature's peak of rank 0, above what the process held when it began to build, and theory."""
    named = chosen([_contender(settings.case, settings.threads, feature) for feature in _FEATURES], settings, BASE)
    if settings.case.device == "cuda":
        floors, named = [], [contender for contender in named if contender.ranks == 1]
    else:
        # What libraries and buffers of fixed size take shows with a model of no size.
        small = replace(TINY, dtype=settings.case.dtype, global_batch_size=2)
        floors = [replace(c, case=replace(small, micro_batch_size=2 // c.ranks)) for c in named]
    tolerance = FP32 if settings.case.dtype == "fp32" else HALF
    how: dict[str, Any] = {"warmup": min(settings.warmup, _WARMUP), "steps": 1, "tolerance": tolerance, "say": say}
    records = alone(named, logs, **how)
    by_name = {record.contender.name: record for record in alone(floors, logs, **how)} if floors else {}
    values = [_feature(record, by_name.get(record.contender.name)) for record in records]
    return values, _feature_table(values)


def _contender(case: Case, threads: int, feature: tuple[str, int, tuple[str, ...]]) -> Contender:
    name, ranks, words = feature
    mine = replace(case, micro_batch_size=case.micro_batch_size // ranks or 1)
    return Contender(name, "trident", mine, {"overrides": list(words)}, ranks=ranks, threads=max(1, threads // ranks))


def _feature(record: Record, floor: Record | None) -> dict[str, Any]:
    contender = record.contender
    plan = contender.case.plan(tuple(contender.options["overrides"]), contender.ranks)
    values: dict[str, Any] = {
        "name": contender.name,
        "ranks": contender.ranks,
        "overrides": contender.options["overrides"],
        "case": contender.case.to_dict(),
        "theory_bytes": _theory(plan, on_cpu=contender.case.device != "cuda"),
    }
    reason = record.reason or (floor.reason if floor is not None else None)
    if reason is not None:
        return {**values, "skipped": reason}
    peak = record.turns[-1].extras["peak_bytes"]
    below = floor.turns[-1].extras["peak_bytes"] if floor is not None else 0
    return {**values, "peak_bytes": peak, "floor_bytes": below, "loss_error": record.loss_error}


def _theory(plan: RunPlan, on_cpu: bool) -> dict[str, int]:
    """Return the bytes that a rank should hold, by purpose, and in total without what no tensor holds."""
    found = dict(OwnMemory(on_cpu).stages(plan)[0].by_purpose)
    del found["overhead"]
    return {**found, "total": sum(found.values())}


def _feature_table(values: Sequence[Mapping[str, Any]]) -> str:
    sizes = {one["name"]: one["peak_bytes"] - one["floor_bytes"] for one in values if "skipped" not in one}
    base = sizes.get(BASE, 0)
    rows = []
    for one in values:
        theory = one["theory_bytes"]
        states = theory["weights"] + theory["gradients"] + theory["master"] + theory["moments"]
        parts = f"{states / MIB:,.0f} + {theory['activations'] / MIB:,.0f} + {theory['loss'] / MIB:,.0f}"
        if "skipped" in one:
            rows.append([one["name"], "-", "-", "-", parts, f"skipped: {one['skipped']}"])
            continue
        size = sizes[one["name"]]
        shares = [f"{size / base:.2f}" if base > 0 else "-", parts, f"{size / theory['total']:.2f}"]
        rows.append([one["name"], f"{size / MIB:,.0f}", f"{one['floor_bytes'] / MIB:,.0f}", *shares])
    head = ["feature", "peak above floor, MiB", "floor, MiB", "of defaults"]
    return table(rows, [*head, "theory: states + activations + loss", "peak / theory"])


def _loss(settings: Settings, logs: Path) -> tuple[dict[str, Any], str]:
    """Return the peaks of head and loss alone, fused and not, and how far their gradients are apart."""
    case = settings.case
    shape = LOSS_SHAPE
    if case.name.startswith("tiny"):
        shape = {"tokens": case.seq_length, "hidden_size": case.hidden_size, "vocab_size": case.vocab_size}

    def one(name: str, **options: Any) -> Contender:
        whole = replace(case, global_batch_size=1, micro_batch_size=1, seq_length=shape["tokens"])
        return Contender(name, "head_loss", whole, {**shape, **options}, threads=settings.threads)

    contenders = [one("whole logits"), one("fused", fused=True), one("both, for the gradients", fused=True, check=True)]
    tolerance = FP32 if case.dtype == "fp32" else HALF
    whole, fused, both = alone(contenders, logs, warmup=1, steps=1, tolerance=tolerance, say=say)
    reasons = [record.reason for record in (whole, fused, both) if record.reason is not None]
    if reasons:
        return {"shape": shape, "skipped": reasons[0]}, f"Loss alone: skipped: {reasons[0]}"
    peaks = {record.contender.name: record.turns[-1].extras["peak_bytes"] for record in (whole, fused)}
    error = both.facts["gradient_error"]
    tensors = {name: int(both.facts[f"{name}_tensor_bytes"]) for name in ("whole", "fused")}
    # Both leave the head's gradient behind, which is no part of the loss.
    left = shape["vocab_size"] * shape["hidden_size"] * (4 if case.dtype == "fp32" else 2)
    shares = {
        "with": fused_share(peaks["fused"], peaks["whole logits"]),
        "without": fused_share(peaks["fused"] - left, peaks["whole logits"] - left),
    }
    text = (
        f"Head and loss alone, {shape['tokens']} tokens of {shape['hidden_size']}, vocabulary {shape['vocab_size']:,}, "
        f"{case.dtype}, the head's gradient of {left / MIB:,.0f} MiB included, which both leave behind:\n"
        f"tensors: whole logits {tensors['whole'] / MIB:,.0f} MiB, fused {tensors['fused'] / MIB:,.0f} MiB "
        f"({_percent(fused_share(tensors['fused'], tensors['whole']))});\n"
        f"process: whole logits {peaks['whole logits'] / MIB:,.0f} MiB, fused {peaks['fused'] / MIB:,.0f} MiB "
        f"({_percent(shares['with'])}; {_percent(shares['without'])} without that gradient);\n"
        f"gradients apart by {error:.1e} (relative)."
    )
    found = {
        "tensor_bytes": tensors,
        "peak_bytes": peaks,
        "head_gradient_bytes": left,
        "fused_share": shares,
        "gradient_error": error,
    }
    return {"shape": shape, "dtype": case.dtype, **found}, text


def fused_share(fused: int, whole: int) -> float | None:
    """Return the share; None where there is nothing to compare: a tiny head vanishes in a process's pages."""
    return fused / whole if whole > 0 and fused > 0 else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _largest_models(settings: Settings, logs: Path) -> tuple[dict[str, Any], str]:
    """Search, on CUDA only, for the most blocks of GPT-3 6.7B's width that train with and without offload."""
    if settings.case.device != "cuda":
        reason = "not measured on a CPU, where offload moves nothing and the host's memory is the only limit"
        return {"skipped": reason}, f"Largest model that one device trains: {reason}."
    found: dict[str, Any] = {}
    for name, words in _PLACES.items():
        trial = _Trial(settings.case, words, logs)
        try:
            blocks = largest(trial.fits, _MOST_BLOCKS)
        except ContenderFailed as error:
            found[name] = {"skipped": str(error)}
            continue
        parameters = trial.case_of(blocks).plan().model.parameter_count if blocks else 0
        found[name] = {"blocks": blocks, "hidden_size": _HIDDEN, "parameters": parameters, "limit": trial.limit}
    text = ", ".join(f"{name} {one.get('parameters', 0) / 1e9:.2f}B" for name, one in found.items())
    return found, f"Largest model that one device trains (width {_HIDDEN}, full recomputation, one sequence): {text}."


def _cores() -> int:
    """Return how many there are: the optimizer of an offloaded model computes on all of them."""
    return len(os.sched_getaffinity(0))


class _Trial:
    """Trains ever other numbers of blocks, each in a process of its own."""

    def __init__(self, case: Case, words: Sequence[str], logs: Path) -> None:
        self._case = case
        self._words = words
        self._logs = logs
        self.limit = ""
        """Why the last one that did not fit did not."""

    def case_of(self, blocks: int) -> Case:
        """Return the case with so many wide blocks, one sequence a step."""
        return replace(
            self._case,
            hidden_size=_HIDDEN,
            num_heads=_HIDDEN // 128,
            ffn_hidden_size=4 * _HIDDEN,
            num_layers=blocks,
            global_batch_size=1,
            micro_batch_size=1,
        )

    def fits(self, blocks: int) -> bool:
        """Return whether two steps fit: the second has the optimizer's state beside the activations.

        Raises:
            ContenderFailed: for another reason than memory.
        """
        options = {"overrides": ["model.recompute=full", *self._words]}
        contender = Contender("largest", "trident", self.case_of(blocks), options, threads=_cores())
        try:
            train_alone(contender, self._logs, 2)
        except ContenderFailed as error:
            if not error.is_out_of_memory:
                raise
            self.limit = str(error)
            say(f"{blocks} blocks do not fit: {error}")
            return False
        say(f"{blocks} blocks train")
        return True
