"""GPT-3 shapes on one GPU: tokens/s and how much of the GPU that is. Its code also runs dry, on the CPU."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.arena import Contender, ContenderFailed, Turn, train_alone
from benchmarks.case import GPT3, GPU_SEQ_LENGTHS, TINY, Case, gpu_case
from benchmarks.contest import load_average, written
from benchmarks.figures import H100_BF16_TFLOPS, spread, train_flops_per_token, utilization
from benchmarks.machine import gpu_names
from benchmarks.record import table
from benchmarks.settings import Settings, UsageError, check_known
from trainer.log import say
from trainer.model.accounting import parameter_count

_ENOUGH = 4
"""Sequences in a micro-batch from which recomputation cannot pay: the matrices are large enough."""


@dataclass(frozen=True)
class Setup:
    """How a contender gets a model into memory."""

    name: str
    words: tuple[str, ...] = ()


_SETUPS = (
    Setup("as is"),
    Setup("full recomputation", ("model.recompute=full",)),
    Setup("full recomputation, CPU offload", ("model.recompute=full", "zero=stage1_offload")),
)
"""From the fastest to the smallest."""
_PEERS: dict[str, tuple[str, bool]] = {
    "trident": ("trident", False),
    "trident, compiled blocks": ("trident", True),
    "plain loop, fused AdamW + compile": ("plain", True),
}
"""Kind by name, and whether it is compiled."""


def gpu(settings: Settings) -> Path:
    """Measure every size and sequence length.

    Raises:
        UsageError: there is no GPU and no `--dry`; or a size, a length or a contender does not exist.
    """
    check_known(settings.models, [*GPT3], "--models", "size")
    check_known([str(n) for n in settings.seq_lengths], [str(n) for n in GPU_SEQ_LENGTHS], "--seq-lengths", "length")
    check_known(settings.only, [*_PEERS], "--only", "contender")
    if not settings.dry and not gpu_names():
        raise UsageError("the suite gpu needs a CUDA device, but there is none; --dry runs its code on the CPU")
    before = load_average()
    cases = _cases(settings)
    names = [name for name in _PEERS if not settings.only or name in settings.only or name == "trident"]
    with tempfile.TemporaryDirectory(prefix="benchmark_logs_") as folder:
        matmul = _matmul(settings, cases[0], Path(folder))
        rows = [_row(name, case, settings, matmul, Path(folder)) for case in cases for name in names]
    body = {
        "load_average_before": before,
        "device": cases[0].device,
        "dry": settings.dry,
        "peak_tflops": None if settings.dry else H100_BF16_TFLOPS,
        "matmul_tflops": matmul,
        "warmup_steps": settings.warmup,
        "steps": settings.rounds * settings.steps,
        "rows": rows,
    }
    note = "Dry run on the CPU: it shows that the code runs, and nothing of a GPU.\n\n" if settings.dry else ""
    name = "dry" if settings.dry else "gpt3"
    return written("gpu", name, body, note + gpu_table(rows), settings)


def _cases(settings: Settings) -> list[Case]:
    if settings.dry:
        return [replace(TINY, name="tiny_dry", dtype="bf16")]
    sizes, lengths = settings.models or tuple(GPT3), settings.seq_lengths or GPU_SEQ_LENGTHS
    return [gpu_case(size, length) for size in sizes for length in lengths]


def _matmul(settings: Settings, case: Case, logs: Path) -> dict[str, float]:
    """Return the best rate in TFLOP/s by size of the matrix product; empty if it does not run."""
    options = {"sizes": [64, 128], "repeats": 2} if settings.dry else {"sizes": [4096, 6144, 8192], "repeats": 20}
    try:
        (turn,) = train_alone(Contender("matmul", "matmul", case, options, site=settings.site), logs, 1)
    except ContenderFailed as error:
        say(f"matmul: {error}")
        return {}
    found: dict[str, float] = turn.extras["matmul_tflops"]
    return found


@dataclass(frozen=True)
class Fitted:
    """A setup that trains."""

    setup: Setup
    case: Case
    turns: Sequence[Turn]

    def rates(self, steps: int) -> list[float]:
        """Return tokens/s of the timed turns, all but the first."""
        return [steps * self.case.tokens_per_step / turn.seconds for turn in self.turns[1:]]


def _row(name: str, case: Case, settings: Settings, matmul: Mapping[str, float], logs: Path) -> dict[str, Any]:
    """Return the fastest setup of a contender for a case, and what was tried."""
    kind, is_compiled = _PEERS[name]
    # Compiling on a CPU takes a minute and would show nothing.
    options = {"fused": True, "compile": is_compiled and not settings.dry}
    extra = ("runtime.compile=true",) if options["compile"] else ()
    tried: list[dict[str, Any]] = []

    def attempt(setup: Setup, which: Case) -> Sequence[Turn]:
        words = {**options, "overrides": [*setup.words, *extra]}
        # The optimizer of an offloaded model computes on the CPU: with all of it, as a user would.
        threads = settings.threads if settings.dry else len(os.sched_getaffinity(0))
        contender = Contender(name, kind, which, words, threads=threads, site=settings.site)
        return train_alone(contender, logs, settings.warmup, *(settings.steps for _ in range(settings.rounds)))

    setups = _SETUPS if kind == "trident" else _SETUPS[:1]
    best = best_setup(case, setups, attempt, settings.steps, tried)
    values: dict[str, Any] = {"name": name, "case": case.to_dict(), "tried": tried}
    if best is None:
        return {**values, "skipped": tried[-1]["failed"]}
    return {**values, **measured(best, settings, matmul)}


def best_setup(
    case: Case, setups: Sequence[Setup], attempt: Any, steps: int, tried: list[dict[str, Any]]
) -> Fitted | None:
    """Return the fastest setup, each with the largest micro-batch that fits.

    Later setups are tried only while the micro-batches of earlier ones are small: they save memory and cost time.

    Args:
        case: with the largest micro-batch to try.
        setups: from the fastest to the smallest.
        attempt: trains a setup with a case; raises `ContenderFailed`.
        steps: in each of its timed turns.
        tried: told of every attempt.
    """
    found: list[Fitted] = []
    for setup in setups:
        fitted = _largest_micro_batch(case, setup, attempt, tried)
        if fitted is not None:
            found.append(fitted)
            if fitted.case.micro_batch_size >= min(_ENOUGH, case.micro_batch_size):
                break
        if len(found) == 2:
            break
    return max(found, key=lambda one: spread(one.rates(steps)).median, default=None)


def _largest_micro_batch(case: Case, setup: Setup, attempt: Any, tried: list[dict[str, Any]]) -> Fitted | None:
    """Halve the micro-batch until it fits; None if one sequence does not, or it fails for another reason."""
    size = case.micro_batch_size
    while size >= 1:
        which = replace(case, micro_batch_size=size)
        entry: dict[str, Any] = {"setup": setup.name, "micro_batch_size": size}
        tried.append(entry)
        try:
            return Fitted(setup, which, attempt(setup, which))
        except ContenderFailed as error:
            entry["failed"] = str(error)
            say(f"{case.name}, {case.seq_length} tokens, micro-batch {size}, {setup.name}: {error}")
            if not error.is_out_of_memory:
                return None
        size //= 2
    return None


def measured(best: Fitted, settings: Settings, matmul: Mapping[str, float]) -> dict[str, Any]:
    """Return the figures of a contender; shares of a GPU's peak only where they are of a GPU."""
    case = best.case
    count = parameter_count(case.plan().model)
    rate = spread(best.rates(settings.steps))
    flops = {
        name: train_flops_per_token(count, case.num_layers, case.hidden_size, case.seq_length, causal=name == "causal")
        for name in ("full", "causal")
    }
    best_matmul = max(matmul.values(), default=None)
    of_peak = {name: utilization(rate.median, one, H100_BF16_TFLOPS) for name, one in flops.items()}
    of_matmul = (
        {name: utilization(rate.median, one, best_matmul) for name, one in flops.items()} if best_matmul else None
    )
    return {
        "setup": best.setup.name,
        "micro_batch_size": case.micro_batch_size,
        "parameters": count,
        "tokens_per_second": rate.to_dict(),
        "turn_seconds": [round(turn.seconds, 4) for turn in best.turns],
        "peak_bytes": best.turns[-1].extras.get("peak_bytes"),
        "last_loss": best.turns[-1].losses[-1],
        "flops_per_token": flops,
        "mfu": None if settings.dry else of_peak,
        "of_matmul": of_matmul,
    }


def gpu_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of rows that `_row` made."""
    lines = []
    for row in rows:
        case = row["case"]
        start = [row["name"], case["name"], str(case["seq_length"])]
        if "skipped" in row:
            lines.append([*start, f"skipped: {row['skipped']}", *["-"] * 5])
            continue
        rate = row["tokens_per_second"]
        lines.append(
            [
                *start,
                f"{row['setup']}, micro-batch {row['micro_batch_size']}",
                f"{rate['median']:,.0f}",
                f"{rate['least']:,.0f} .. {rate['most']:,.0f}",
                _both(row["mfu"]),
                _both(row["of_matmul"]),
                f"{row['peak_bytes'] / 2**30:.2f}",
            ]
        )
    head = ["contender", "model", "seq", "setup", "tokens/s, median", "least .. most"]
    return table(lines, [*head, "MFU of 989 (full, causal)", "of own matmul (full, causal)", "peak, GiB"])


def _both(shares: Mapping[str, float] | None) -> str:
    return "-" if shares is None else f"{shares['full']:.1%}, {shares['causal']:.1%}"
