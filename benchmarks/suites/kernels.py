"""The kernels that a model is made of, each alone, on the device at hand: a GPU, or else the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.arena import Contender, ContenderFailed, Running
from benchmarks.case import GPT3, GPU_SEQ_LENGTHS, TINY, Case, gpu_case
from benchmarks.contest import load_average, written
from benchmarks.machine import gpu_names
from benchmarks.record import table
from benchmarks.settings import Settings, UsageError, check_known
from trainer.log import say

PARTS = ("products", "attention", "loss")
TOKENS = 1 << 14
"""Tokens that a GPU's kernel is given at once: enough to fill it, and few enough that whole logits fit into memory."""
_CHUNKS = {"cpu": (1 << 20, 1 << 22, 1 << 24), "cuda": (1 << 26, 1 << 28, 1 << 30)}
_DRY_CHUNKS = (1 << 8, 1 << 12)
_MIB = 1 << 20


def kernels(settings: Settings) -> Path:
    """Measure GEMMs, attention, and head with loss, in one process.

    Raises:
        UsageError: a part, a size or a length does not exist; or sizes and lengths of a GPU are named without one.
    """
    check_known(settings.only, PARTS, "--only", "part")
    check_known(settings.models, [*GPT3], "--models", "size")
    check_known([str(n) for n in settings.seq_lengths], [str(n) for n in GPU_SEQ_LENGTHS], "--seq-lengths", "length")
    has_gpu = bool(gpu_names()) and not settings.dry
    if (settings.models or settings.seq_lengths) and not (has_gpu or settings.dry):
        raise UsageError(
            "--models and --seq-lengths need a CUDA device, but there is none; --case says the CPU's shapes"
        )
    before = load_average()
    cases = cases_of(settings, has_gpu)
    with tempfile.TemporaryDirectory(prefix="benchmark_logs_") as folder:
        found = _measured(_contender(cases, settings), [*cases], Path(folder))
    first = next(iter(cases.values()))[0]
    body = {
        "load_average_before": before,
        "device": first.device,
        "dry": settings.dry,
        "dtype": first.dtype,
        "warmup": settings.warmup,
        "repeats": settings.rounds,
        "cases": {part: [case.to_dict() for case in values] for part, values in cases.items()},
        **found,
    }
    note = "Dry run on the CPU: it shows that the code runs, and nothing of a device.\n\n" if settings.dry else ""
    name = "dry" if settings.dry else "gpt3" if has_gpu else settings.case.name
    return written("kernels", name, body, note + kernel_tables(found), settings)


def cases_of(settings: Settings, has_gpu: bool) -> dict[str, list[Case]]:
    """Return whose shapes are measured in each part; only attention depends on the length of a sequence."""
    parts = [part for part in PARTS if not settings.only or part in settings.only]
    if not has_gpu:
        case = replace(TINY, name="tiny_dry") if settings.dry else settings.case
        return {part: [case] for part in parts}
    sizes, lengths = settings.models or tuple(GPT3), settings.seq_lengths or GPU_SEQ_LENGTHS

    def at_once(case: Case) -> Case:
        return replace(case, micro_batch_size=max(1, TOKENS // case.seq_length))

    return {
        part: [at_once(gpu_case(s, n)) for s in sizes for n in (lengths if part == "attention" else lengths[:1])]
        for part in parts
    }


def _contender(cases: Mapping[str, Sequence[Case]], settings: Settings) -> Contender:
    first = next(iter(cases.values()))[0]
    options = {
        "parts": {part: [case.to_dict() for case in values] for part, values in cases.items()},
        "warmup": settings.warmup,
        "repeats": settings.rounds,
        "chunks": _DRY_CHUNKS if settings.dry else _CHUNKS[first.device],
        # Compiling takes a minute on a CPU and would show nothing.
        "compile": not settings.dry,
    }
    return Contender("kernels", "kernels", first, options, threads=settings.threads, site=settings.site)


def _measured(contender: Contender, parts: Sequence[str], logs: Path) -> dict[str, Any]:
    """Return the rows of every part; of one in which the process died, and of those after it, why there are none."""
    found: dict[str, Any] = {}
    try:
        running = Running(contender, logs)
    except ContenderFailed as error:
        return {part: {"skipped": str(error)} for part in parts}
    try:
        for part in parts:
            found[part] = running.turn(1).extras["rows"]
            say(f"{part}: {len(found[part])} rows")
    except (ContenderFailed, OSError) as error:
        say(f"kernels: {error}")
        found |= {part: {"skipped": str(error)} for part in parts if part not in found}
    finally:
        running.close()
    return found


def kernel_tables(found: Mapping[str, Any]) -> str:
    """Return a table a part, of rows that the contender made."""
    make = {"products": _products, "attention": _attention, "loss": _loss}
    shown = []
    for part, rows in found.items():
        title, head, cells = make[part]([] if isinstance(rows, Mapping) else rows)
        shown.append(
            f"{title}: skipped: {rows['skipped']}" if isinstance(rows, Mapping) else table_of(title, head, cells)
        )
    return "\n\n".join(shown)


def table_of(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table under its title; a row that is too short has its reason last."""
    whole = [[*row[:-1], row[-1], *["-"] * (len(head) - len(row))] for row in rows]
    return f"{title}\n\n{table(whole, head)}"


Table = tuple[str, list[str], list[list[str]]]


def _cells(
    rows: Sequence[Mapping[str, Any]], facts: Sequence[str], figures: Callable[[Mapping[str, Any]], list[str]]
) -> list[list[str]]:
    """Return a line a row: its facts, then its figures or the reason why there are none."""
    return [
        [
            *(str(row.get(key, "-")) for key in facts),
            *([f"failed: {row['failed']}"] if "failed" in row else figures(row)),
        ]
        for row in rows
    ]


def _products(rows: Sequence[Mapping[str, Any]]) -> Table:
    def figures(row: Mapping[str, Any]) -> list[str]:
        return [f"{row['tflops'][kind]:.3g}" for kind in ("forward", "input_gradient", "weight_gradient")]

    head = ["model", "product", "rows", "in", "out", "library", "forward", "input gradient", "weight gradient"]
    cells = _cells(rows, ("case", "product", "rows", "in", "out", "library"), figures)
    return "GEMMs, TFLOP/s", head, cells


def _attention(rows: Sequence[Mapping[str, Any]]) -> Table:
    def figures(row: Mapping[str, Any]) -> list[str]:
        return [*_times(row), "yes" if row["choice"] == row["backend"] else ""]

    head = [
        "model",
        "seq",
        "batch",
        "heads",
        "head size",
        "backend",
        "forward, ms",
        "with backward, ms",
        "PyTorch's choice",
    ]
    cells = _cells(rows, ("case", "seq", "batch", "heads", "head_dim", "backend"), figures)
    return "Causal attention", head, cells


def _loss(rows: Sequence[Mapping[str, Any]]) -> Table:
    def figures(row: Mapping[str, Any]) -> list[str]:
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / _MIB:,.0f}"
        return [*_times(row), peak, f"{row['loss_error']:.0e}, {row['gradient_error']:.0e}"]

    head = ["model", "rows", "width", "vocabulary", "way", "forward, ms", "with backward, ms", "peak of tensors, MiB"]
    cells = _cells(rows, ("case", "rows", "hidden", "vocab", "way"), figures)
    return "Head and loss", [*head, "apart: loss, gradients"], cells


def _times(row: Mapping[str, Any]) -> list[str]:
    return [f"{1e3 * row['forward_s']:.3f}", f"{1e3 * row['both_s']:.3f}"]
