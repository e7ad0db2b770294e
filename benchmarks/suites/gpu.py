"""GPT-3 shapes on one GPU: tokens/s and how much of the GPU that is. Its code also runs dry, on the CPU."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.arena import HALF, Contender, ContenderFailed, Record, Turn, judge, train_alone
from benchmarks.case import GPT3, GPU_SEQ_LENGTHS, TINY, Case, gpu_case
from benchmarks.contest import load_average, written
from benchmarks.figures import H100_BF16_TFLOPS, spread, train_flops_per_token, utilization
from benchmarks.machine import gpu_memory_bytes, gpu_names
from benchmarks.record import table
from benchmarks.search import GIB, Fitted, Search, Setup
from benchmarks.settings import Settings, UsageError, check_known
from trainer.log import say

_SETUPS = (
    Setup("as is"),
    Setup("full recomputation", ("model.recompute=full",)),
    Setup("full recomputation, CPU offload", ("model.recompute=full", "zero=stage1_offload")),
)
"""Setups from the fastest to the one with the least memory."""


@dataclass(frozen=True)
class Peer:
    """A contender of this suite."""

    kind: str
    compiles: bool = False
    words: tuple[str, ...] = ()
    """Trident only: words after `trident train`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    theory: tuple[str, ...] = ()
    """Settings that the memory theory must know, as words after `trident train`."""
    by_default: bool = False
    """True if it takes part when no contender is named: time on a GPU is short."""


_NO_ZERO = "zero=stage0"
"""Theory of peers: fp32 parameters and autocast's half-precision copy are as many bytes as ours, without buckets."""
_WHOLE_LOGITS = "model.fused_loss=false"
_TRAINER = {"fused": True}
PEERS: dict[str, Peer] = {
    "trident": Peer("trident", by_default=True),
    "trident, compiled blocks": Peer("trident", compiles=True, by_default=True),
    "trident, Liger kernels": Peer("trident", words=("runtime.liger=true",)),
    "plain loop, fused AdamW + compile": Peer(
        "plain", compiles=True, options={"fused": True}, theory=(_NO_ZERO, _WHOLE_LOGITS), by_default=True
    ),
    "transformers Trainer": Peer(
        "transformers_trainer", compiles=True, options=_TRAINER, theory=(_NO_ZERO, _WHOLE_LOGITS)
    ),
    "transformers Trainer + Liger": Peer(
        "transformers_trainer", compiles=True, options={**_TRAINER, "liger": True}, theory=(_NO_ZERO,)
    ),
}
"""Contenders by name."""


def gpu(settings: Settings) -> Path:
    """Measure every size and sequence length.

    Raises:
        UsageError: there is no GPU and no `--dry`; or a size, a length or a contender does not exist.
    """
    check_known(settings.models, [*GPT3], "--models", "size")
    check_known([str(n) for n in settings.seq_lengths], [str(n) for n in GPU_SEQ_LENGTHS], "--seq-lengths", "length")
    check_known(settings.only, [*PEERS], "--only", "contender")
    if not settings.dry and not gpu_names():
        raise UsageError("the suite gpu needs a CUDA device, but there is none; --dry runs its code on the CPU")
    before = load_average()
    cases = _cases(settings)
    memory = None if settings.dry else gpu_memory_bytes()
    names = takes_part(settings.only)
    with tempfile.TemporaryDirectory(prefix="benchmark_logs_") as folder:
        matmul = _matmul(settings, cases[0], Path(folder))
        measure = _Rows(settings, matmul, memory, Path(folder))
        rows = [row for case in cases for row in measure.of(case, names)]
    body = {
        "load_average_before": before,
        "device": cases[0].device,
        "dry": settings.dry,
        "peak_tflops": None if settings.dry else H100_BF16_TFLOPS,
        "matmul_tflops": matmul,
        "gpu_memory_bytes": memory,
        "warmup_steps": settings.warmup,
        "steps": settings.rounds * settings.steps,
        "rows": rows,
    }
    note = "Dry run on the CPU: it shows that the code runs, and nothing of a GPU.\n\n" if settings.dry else ""
    name = "dry" if settings.dry else "gpt3"
    return written("gpu", name, body, note + gpu_table(rows), settings)


def takes_part(only: Sequence[str]) -> list[str]:
    """Return the contenders' names in their order: those in `only` and Trident, or those that always do."""
    if only:
        return [name for name in PEERS if name in only or name == "trident"]
    return [name for name, peer in PEERS.items() if peer.by_default]


def _cases(settings: Settings) -> list[Case]:
    if settings.dry:
        return [replace(TINY, name="tiny_dry", dtype="bf16")]
    sizes, lengths = settings.models or tuple(GPT3), settings.seq_lengths or GPU_SEQ_LENGTHS
    return [gpu_case(size, length) for size in sizes for length in lengths]


def _matmul(settings: Settings, case: Case, logs: Path) -> dict[str, float]:
    """Return the best rate in TFLOP/s by size of the GEMM; empty if it does not run."""
    options = {"sizes": [64, 128], "repeats": 2} if settings.dry else {"sizes": [4096, 6144, 8192], "repeats": 20}
    try:
        (turn,) = train_alone(Contender("matmul", "matmul", case, options, site=settings.site), logs, 1)
    except ContenderFailed as error:
        say(f"matmul: {error}")
        return {}
    found: dict[str, float] = turn.extras["matmul_tflops"]
    return found


class _Rows:
    """Measures a case with one contender after another; the first one that trains is who the others must agree with."""

    def __init__(self, settings: Settings, matmul: Mapping[str, float], memory: int | None, logs: Path) -> None:
        self._settings = settings
        self._matmul = matmul
        self._memory = memory
        self._logs = logs

    def of(self, case: Case, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return one row a contender: its fastest setup, and what was tried."""
        rows: list[dict[str, Any]] = []
        reference: Sequence[float] | None = None
        for name in names:
            peer = PEERS[name]
            search = Search(self._attempt(name, peer), self._settings.steps, self._memory, peer.theory)
            best = search.best(case, _SETUPS if peer.kind == "trident" else _SETUPS[:1])
            values = {"name": name, "case": case.to_dict(), "tried": search.tried}
            if best is None:
                rows.append({**values, "skipped": search.reason})
                continue
            reference = best.turns[0].losses if reference is None else reference
            rows.append({**values, **self._judged(name, search, best, reference)})
        return rows

    def _attempt(self, name: str, peer: Peer) -> Callable[[Setup, Case], Sequence[Turn]]:
        settings = self._settings
        # Compiling on a CPU takes a minute and would show nothing.
        compiles = peer.compiles and not settings.dry
        extra = (*peer.words, *(("runtime.compile=true",) if compiles else ()))
        # The optimizer of an offloaded model computes on the CPU: with all of it, as a user would.
        threads = settings.threads if settings.dry else len(os.sched_getaffinity(0))

        def attempt(setup: Setup, case: Case) -> Sequence[Turn]:
            options = {**peer.options, "compile": compiles, "overrides": [*setup.words, *extra]}
            contender = Contender(name, peer.kind, case, options, threads=threads, site=settings.site)
            return train_alone(
                contender, self._logs, settings.warmup, *(settings.steps for _ in range(settings.rounds))
            )

        return attempt

    def _judged(self, name: str, search: Search, best: Fitted, reference: Sequence[float]) -> dict[str, Any]:
        """Return the figures, or why there are none; with them, theory and the losses of the warm-up."""
        record = Record(Contender(name, PEERS[name].kind, best.case), losses=list(best.turns[0].losses))
        reason = judge(record, reference, HALF)
        values = {"first_losses": record.losses, "loss_error": record.loss_error}
        if reason is not None:
            say(f"dropped {name}, {best.case.name}: {reason}")
            return {**values, "skipped": reason}
        expected = {"expected_bytes": search.expected(best.case, best.setup)}
        return {**values, **expected, **measured(best, self._settings, self._matmul)}


def measured(best: Fitted, settings: Settings, matmul: Mapping[str, float]) -> dict[str, Any]:
    """Return the figures of a contender; shares of a GPU's peak only where they are of a GPU."""
    case = best.case
    count = case.plan().model.parameter_count
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
    """Return the table of rows that `_Rows` made."""
    lines = []
    for row in rows:
        case = row["case"]
        start = [row["name"], case["name"], str(case["seq_length"])]
        if "skipped" in row:
            lines.append([*start, f"skipped: {row['skipped']}", *["-"] * 6])
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
                f"{row['peak_bytes'] / GIB:.2f} ({row['expected_bytes'] / GIB:.2f})",
                f"loss {row['loss_error']:.0e}",
            ]
        )
    head = ["contender", "model", "seq", "setup", "tokens/s, median", "least .. most"]
    return table(
        lines, [*head, "MFU of 989 (full, causal)", "of own matmul (full, causal)", "peak (theory), GiB", "check"]
    )


def _both(shares: Mapping[str, float] | None) -> str:
    return "-" if shares is None else f"{shares['full']:.1%}, {shares['causal']:.1%}"
