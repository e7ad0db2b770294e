"""Memory of each stage of ZeRO: peaks of building and of a step, and who owns the bytes, beside theory."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.arena import Contender, ContenderFailed, train_alone
from benchmarks.case import CASES, Case
from benchmarks.contest import load_average, written
from benchmarks.record import table
from benchmarks.settings import Settings, chosen
from trainer.log import say
from trainer.planner.own_memory import OwnMemory

GIB = 1 << 30
_WIDE = replace(CASES["cpu_159m"], name="zero_159m", seq_length=32, global_batch_size=2, micro_batch_size=1)
_SIZES: tuple[tuple[Case, int], ...] = (
    (_WIDE, 2),
    (replace(_WIDE, name="zero_302m", num_layers=24, vocab_size=512, global_batch_size=4), 4),
)
"""Models whose states are large beside everything else, and on how many ranks: sequences are short."""
_CHOICES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ZeRO-0", ("zero=stage0",)),
    ("ZeRO-1", ("zero=stage1",)),
    ("ZeRO-2", ("zero=stage2",)),
    ("ZeRO-3", ("zero=stage3",)),
    ("ZeRO-1 + cpu offload", ("zero=stage1_offload",)),
    ("ZeRO-2 + cpu offload", ("zero=stage2_offload",)),
    ("ZeRO-3 + cpu offload", ("zero=stage3_offload",)),
)
_WARMUP = 2
"""Steps: the first makes the optimizer's state, the second has everything."""


def zero(settings: Settings) -> Path:
    """Measure every choice of both sizes, or of a named case on two ranks, each alone."""
    before = load_average()
    sizes = _SIZES if settings.case.name == "cpu" else ((settings.case, 2),)
    # Without ZeRO a rank holds the same however many there are: two of them, so that a small machine has the room.
    contenders = [
        _contender(case, 2 if name == "ZeRO-0" else ranks, name, words)
        for case, ranks in sizes
        for name, words in _CHOICES
    ]
    wanted = chosen(contenders, settings, contenders[0].name)
    with tempfile.TemporaryDirectory(prefix="benchmark_logs_") as logs:
        values = [_measured(contender, Path(logs)) for contender in wanted]
    body = {"load_average_before": before, "choices": values}
    return written("zero", settings.case.name, body, _table(values), settings)


def _contender(case: Case, ranks: int, name: str, words: Sequence[str]) -> Contender:
    # Two micro-batches: of one, ZeRO-1 reduces the gradients while they come, as ZeRO-2 does of any.
    sized = replace(case, micro_batch_size=1, global_batch_size=2 * ranks)
    overrides = [*words, f"layout=dp{ranks}", "runtime.threads_per_rank=1"]
    options = {"overrides": overrides, "census": _WARMUP + 2}
    return Contender(f"{case.name}, DP{ranks}, {name}", "zero_states", sized, options, ranks=ranks)


def _measured(contender: Contender, logs: Path) -> dict[str, Any]:
    plan = contender.case.plan(tuple(contender.options["overrides"]), contender.ranks)
    states = OwnMemory(on_cpu=True).states(plan, plan.zero_stage, plan.offload)[0]
    theory = {
        "weights": states.weights,
        "gathered": states.gathered,
        "gradients": states.gradients,
        "master": states.master,
        "moments": states.moments,
        "buffers": states.buckets,
    }
    values: dict[str, Any] = {
        "name": contender.name,
        "ranks": contender.ranks,
        "case": contender.case.to_dict(),
        "overrides": contender.options["overrides"],
        "theory_bytes": {**theory, "total": sum(theory.values())},
    }
    try:
        _, step, counted = train_alone(contender, logs, _WARMUP, 1, 1)
    except ContenderFailed as error:
        say(f"{contender.name}: {error}")
        return {**values, "skipped": str(error)}
    extras = {key: step.extras[key] for key in ("held_before_bytes", "start_bytes", "step_bytes")}
    say(f"{contender.name}: {(extras['held_before_bytes'] + extras['step_bytes']) / GIB:.2f} GiB")
    return {**values, **extras, "losses": step.losses, "owner_bytes": counted.extras["owners"]}


def _table(values: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for one in values:
        if "skipped" in one:
            rows.append([one["name"], f"skipped: {one['skipped']}"])
            continue
        base, owners, theory = one["held_before_bytes"], one["owner_bytes"], one["theory_bytes"]
        peak = base + one["step_bytes"]
        rest = peak - base - sum(owners.values())
        states = [f"{owners[key] / GIB:.2f} ({theory[key] / GIB:.2f})" for key in theory if key in owners]
        rows.append(
            [
                one["name"],
                f"{(base + one['start_bytes']) / GIB:.2f}",
                f"{peak / GIB:.2f}",
                f"{base / GIB:.2f}",
                *states,
                f"{owners['other'] / GIB:.2f}",
                f"{rest / GIB:.2f} ({rest / peak:.0%})",
            ]
        )
    head = ["GiB of the fullest rank", "peak of building", "peak of a step", "of it before building"]
    return table(rows, [*head, *_OWNED, "activations, temporaries", "unexplained"])


_OWNED = [f"{name} (theory)" for name in ("weights", "gathered", "gradients", "master", "moments", "buffers")]
