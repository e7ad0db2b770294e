"""Folders of runs that nobody trained: the files that a run leaves, with curves like those of real ones."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from trainer.config.compose import compose, to_yaml
from trainer.config.words import quoted
from trainer.planner.orders import Work, deepspeed_1f1b
from trainer.planner.timeline import Costs, simulate

BEGAN = datetime(2026, 11, 2, 9, 30, tzinfo=UTC)
PARAMETERS = 1_313_722_368
TOKENS_PER_STEP = 524_288
STEP_MS = 1180.0
VERSIONS = {"trident-trainer": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "deepspeed": "0.19.8"}
WORDS = ("experiment=gpt3_1_3b_8gpu", "layout=pp4_tp2", "logging=local")


@dataclass
class MadeRun:
    """A run as its files say it."""

    words: Sequence[str] = ()
    steps: int = 2000
    done: int = 2000
    status: str | None = "finished"
    """None: it wrote down no end."""
    error: str = ""
    log_every: int = 1
    lowest: float = 2.31
    stages: int = 4
    spikes: Sequence[int] = ()
    skips: Sequence[int] = ()
    rewinds: Mapping[int, int] = field(default_factory=dict)
    """Step at which it went back -> step of the checkpoint."""
    restarts: Sequence[int] = ()
    """Steps behind which it was started again."""
    sources: Sequence[str] = ()
    seed: int = 0
    evaluates_every: int = 100
    saves_every: int = 250
    has_texts: bool = True
    has_step: bool = True
    speed: float = 1.0


def make_run(folder: Path, run: MadeRun) -> Path:
    """Write a run's folder and return it."""
    config = compose([*WORDS, f"train.steps={run.steps}", f"run_dir={quoted(str(folder))}", *run.words])
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "logs").mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "plan.json").write_text(json.dumps(_plan(run), indent=1))
    rows = list(_rows(run))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in _events(run, rows)))
    for step in range(run.saves_every, run.done + 1, run.saves_every):
        if step > run.done - 3 * run.saves_every:
            (folder / "checkpoints" / f"step_{step}").mkdir()
            manifest = folder / "checkpoints" / f"step_{step}" / "manifest.json"
            manifest.write_text(json.dumps({"versions": VERSIONS}))
    if run.has_texts:
        (folder / "samples.jsonl").write_text("".join(json.dumps(text) + "\n" for text in _texts(run)))
    if run.has_step:
        (folder / "timeline.json").write_text(json.dumps(_step(run)))
    if run.status is not None:
        summary: dict[str, Any] = {
            "status": run.status,
            "step": run.done,
            "parameters": PARAMETERS,
            "tokens_seen": run.done * TOKENS_PER_STEP,
            "final": rows[-1],
            "layout": {"pipeline": run.stages, "tensor": 2, "data": 1, "world_size": 2 * run.stages},
            "versions": VERSIONS,
            "wall_time_s": run.done * STEP_MS / 1000 * 1.06,
            "source": {"commit": "87f30afdf2b9cf9b46db8ed5b3cfbf41383f9c77", "has_changes": False},
        }
        if run.error:
            summary["error"] = run.error
        (folder / "summary.json").write_text(json.dumps(summary, indent=2))
    return folder


def _loss(run: MadeRun, step: int, scatter: random.Random) -> float:
    share = step / run.steps
    loss = run.lowest + 8.3 * math.exp(-step / (0.018 * run.steps)) + 1.15 * math.exp(-4.2 * share)
    loss += scatter.gauss(0, 0.028 + 0.05 * math.exp(-9 * share))
    return loss + sum(2.4 * math.exp(-(step - spike) / 3) for spike in run.spikes if 0 <= step - spike < 15)


def _rate(run: MadeRun, step: int) -> float:
    warm = max(1, run.steps // 25)
    if step <= warm:
        return 3e-4 * step / warm
    return 3e-5 + 0.5 * (3e-4 - 3e-5) * (1 + math.cos(math.pi * (step - warm) / max(1, run.steps - warm)))


def _rows(run: MadeRun) -> Any:
    scatter = random.Random(run.seed)
    for step in range(run.log_every, run.done + 1, run.log_every):
        step_ms = STEP_MS / run.speed * (1 + abs(scatter.gauss(0, 0.012))) + (900 if step <= 2 else 0)
        if scatter.random() < 0.004:
            step_ms *= 1.35
        loss = _loss(run, step, scatter)
        rate = TOKENS_PER_STEP / step_ms * 1000
        row: dict[str, Any] = {
            "step": step,
            "train/loss": loss,
            "train/grad_norm": 0.35
            + 2.5 * math.exp(-step / (0.03 * run.steps))
            + abs(scatter.gauss(0, 0.08))
            + max(0.0, loss - 6) * 0.2,
            "train/learning_rate": _rate(run, step),
            "train/tokens_seen": step * TOKENS_PER_STEP,
            "perf/tokens_per_second": rate,
            "perf/tokens_per_second_per_gpu": rate / 8,
            "perf/tflops_per_gpu": 430 * rate / 444_000,
            "perf/mfu": 0.4345 * rate / 444_000,
            # A long name without a place to break.
            "system/node0/network_received_mib_per_s": 12.0,
            "time/step_ms": step_ms,
            "time/data_wait_ms": 1.4 + abs(scatter.gauss(0, 0.6)),
            "time/step_p50_ms": STEP_MS / run.speed * 1.008,
            "time/step_p95_ms": STEP_MS / run.speed * 1.04,
            "time/step_p99_ms": STEP_MS / run.speed * 1.21,
            "memory/peak_allocated_gib": 58.2,
            "memory/peak_reserved_gib": 61.9,
            "pipeline/bubble_fraction": 0.166 + scatter.gauss(0, 0.004),
            "train/skipped_batches": len([one for one in run.skips if one <= step]),
            "data/sample_ledger": step * 7919 % 2**47,
            "time/slowest_rank": 5,
            "time/slowest_rank_ratio": 1.04 + abs(scatter.gauss(0, 0.01)),
            "plan/step_ms": 1128.0,
            "plan/step_ms_ratio": step_ms / 1128.0,
            "plan/peak_memory_gib": 62.4,
            "plan/peak_memory_ratio": 61.9 / 62.4,
            "system/node0/cpu_percent": 18 + scatter.gauss(0, 2),
            "system/node0/gpu_power_w": 5200 + scatter.gauss(0, 60),
        }
        for stage in range(run.stages):
            row[f"memory/stage{stage}/peak_used_gib"] = _peak(run, stage) * (0.985 + 0.004 * stage)
            row[f"time/stage{stage}/busy_ms"] = STEP_MS * 0.82 + 4 * stage + scatter.gauss(0, 3)
        for number, source in enumerate(run.sources):
            row[f"loss/{source}"] = loss * (0.72 + 0.17 * number) + scatter.gauss(0, 0.03)
        if run.evaluates_every and step % run.evaluates_every == 0:
            row["eval/loss"] = _loss(run, step, random.Random(step)) + 0.02
            for number, source in enumerate(run.sources):
                row[f"eval/loss/{source}"] = row["eval/loss"] * (0.74 + 0.17 * number)
        yield row


def _peak(run: MadeRun, stage: int) -> float:
    return 62.4 - 4.1 * stage + (3.2 if stage == run.stages - 1 else 0.0)


def _plan(run: MadeRun) -> dict[str, Any]:
    stages = []
    for stage in range(run.stages):
        held = {"weights": 2.5, "gradients": 5.0, "master": 5.0, "moments": 10.0, "activations": 35.1 - 4.1 * stage}
        held |= {"working": 1.1, "loss": 4.2 if stage == run.stages - 1 else 0.0, "buckets": 0.9, "gathered": 0.0}
        held["overhead"] = _peak(run, stage) - sum(held.values())
        stages.append({"memory_gib": held, "peak_gib": _peak(run, stage), "in_flight": run.stages - stage})
    prediction = {
        "fits": True,
        "peak_memory_gib": 62.4,
        "device_memory_gib": 79.6,
        "fullest_stage": 0,
        "stages": stages,
        "step_time_s": 1.128,
        "tokens_per_second": TOKENS_PER_STEP / 1.128,
        "tflops_per_gpu": 449.0,
        "mfu": 0.4543,
        "bubble_fraction": 0.158,
        "confidence": {"step_time": 0.12, "memory": 0.05, "reason": "measured profile", "outside": []},
    }
    sizes = {
        "pipeline_parallel_size": run.stages,
        "tensor_parallel_size": 2,
        "data_parallel_size": 1,
        "world_size": 2 * run.stages,
    }
    return {"model": {"parameters": PARAMETERS}, "layout": sizes, "prediction": prediction}


def _events(run: MadeRun, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    layout = f"pp{run.stages} tp2 dp1"
    found: list[tuple[float, dict[str, Any]]] = [(0, {"kind": "start", "step": 1, "layout": layout})]
    for step in range(run.saves_every, run.done + 1, run.saves_every):
        found.append((step + 0.4, {"kind": "save", "step": step, "write_s": 4.2}))
    for row in rows:
        if "eval/loss" in row:
            found.append((row["step"] + 0.2, {"kind": "evaluation", "step": row["step"], "loss": row["eval/loss"]}))
    found += [(step, {"kind": "spike", "step": step, "loss": 5.1, "limit": 3.4}) for step in run.spikes]
    found += [(step, {"kind": "skip", "step": step, "reason": "not finite", "loss": None}) for step in run.skips]
    found += [(step + 0.1, {"kind": "rewind", "step": step, "to": to}) for step, to in run.rewinds.items()]
    for step in run.restarts:
        again = {"exit_code": 7, "lost_ranks": [5], "by": "trident"}
        found.append((step + 0.5, {"kind": "restart", "step": step, **again}))
        resumed = step // run.saves_every * run.saves_every + 1
        found.append((step + 0.6, {"kind": "start", "step": resumed, "layout": layout}))
    if run.status is not None:
        end: dict[str, Any] = {"kind": "end", "step": run.done, "status": run.status, "wall_s": run.done * 1.25}
        found.append((run.done + 0.9, end | ({"error": run.error} if run.error else {})))
    found.sort(key=lambda one: one[0])
    return [
        {**event, "time": (BEGAN + timedelta(seconds=at * STEP_MS / 1000)).isoformat(timespec="milliseconds")}
        for at, event in found
    ]


_TEXTS = (
    "the of and , the , , of a the in of the the . . to the and of the of , in",
    "The system is the first of the country and the other of the same time, and it was in the",
    "The river runs through the northern part of the valley, and it was used by the first people of the town.",
    "The lighthouse stands at the end of a narrow spit of land. It was built in 1874, after two ships were lost "
    "there in a single winter, and its lamp could be seen from twenty miles away.",
)


def _texts(run: MadeRun) -> list[dict[str, Any]]:
    found = []
    for step in range(run.evaluates_every, run.done + 1, max(run.evaluates_every, run.done // 8)):
        quality = min(len(_TEXTS) - 1, int(len(_TEXTS) * (step / run.done) ** 0.7))
        for prompt in ("", "def "):
            text = _TEXTS[quality] if not prompt else f"{'read' * (quality + 1)}(path):\n    return path.open().read()"
            found.append({"step": step, "prompt": prompt, "text": text})
    return found


def _step(run: MadeRun) -> dict[str, Any]:
    """Return a measured step: the schedule played with passes that scatter, and waits where nothing runs."""
    scatter, micro_batches = random.Random(run.seed), 16
    forward = [21.0 + scatter.gauss(0, 0.6) for _ in range(run.stages)]
    played = simulate(
        deepspeed_1f1b(run.stages, micro_batches),
        Costs(forward, [2.05 * one for one in forward], [0.9] * (run.stages - 1)),
    )
    spans: list[list[Any]] = []
    for rank, passes in enumerate(played.ranks):
        at = 3.5
        spans.append([2 * rank, "data", None, None, 0.0, 2.1, None])
        spans.append([2 * rank, "load", rank, None, 2.1, 3.5, None])
        for one in passes:
            begin, end = 4 + one.begin * 1.02, 4 + one.end * 1.02 - 0.4
            kind = "forward" if one.what.work is Work.forward else "backward"
            if begin - at > 0.6:
                message = [["receive", kind, rank + (-1 if kind == "forward" else 1), one.what.micro_batch]]
                spans.append([2 * rank, "wait", rank, one.what.micro_batch, at, begin - 0.5, message])
                spans.append([2 * rank, "receive", rank, one.what.micro_batch, begin - 0.5, begin, message])
            spans.append([2 * rank, kind, rank, one.what.micro_batch, begin, end, None])
            at = end
        last = 4 + played.makespan * 1.02
        if last - at > 1:
            spans.append([2 * rank, "wait", rank, None, at, last, None])
        spans.append([2 * rank, "reduce", rank, None, last, last + 11, None])
        spans.append([2 * rank, "optimizer", rank, None, last + 11, last + 29 + rank, None])
    columns = ["rank", "kind", "stage", "micro_batch", "begin_ms", "end_ms", "messages"]
    return {
        "version": 1,
        "step": 5,
        "time": BEGAN.isoformat(timespec="milliseconds"),
        "schedule": "1f1b",
        "micro_batches": micro_batches,
        "stages": run.stages,
        "device": "cuda",
        "duration_ms": 0.0,
        "bubble_fraction": 0.2,
        "clock_error_ms": 0.0,
        "columns": columns,
        "ranks": [{"rank": 2 * rank, "host": "node1", "stages": [rank]} for rank in range(run.stages)],
        "spans": spans,
    }


FINISHED = MadeRun(sources=("web", "code", "books"))
CRASHED = MadeRun(done=1263, status=None, evaluates_every=200, seed=2)
FAILED = MadeRun(
    done=700, status="failed", error="OutOfMemoryError: rank 3 ran out of memory in a forward pass", seed=4
)
TROUBLED = MadeRun(
    spikes=(620, 1130, 1512),
    skips=(333, 334, 1131),
    rewinds={1140: 1000, 1520: 1500},
    restarts=(410, 1290),
    seed=3,
)


def make_sweep(folder: Path, runs: int = 12) -> Path:
    """Write a sweep's folder with its runs and return it."""
    rates, sizes, decays = (1e-4, 3e-4, 1e-3, 3e-3), (64, 128, 256), (0.0, 0.1)
    records: list[dict[str, Any]] = []
    scatter = random.Random(7)
    for number in range(runs):
        rate, size, decay = rates[number % 4], sizes[number // 4 % 3], decays[scatter.randrange(2)]
        words = (f"optimizer.lr={rate}", f"batch.global_batch_size={size}", f"optimizer.weight_decay={decay}")
        lowest = (
            2.3
            + 0.22 * abs(math.log10(rate / 5e-4)) ** 1.5
            + 0.05 * abs(math.log2(size / 128))
            + (0.03 if decay == 0 else 0)
        )
        name = f"optimizer.lr={rate:g},batch.global_batch_size={size}"
        is_bad = rate == 3e-3 and size == 64
        made = MadeRun(
            *(words, 400, 120 if is_bad else 400, "failed" if is_bad else "finished"),
            error="NumericsError: the loss was not finite in 10 steps in a row" if is_bad else "",
            lowest=lowest,
            seed=number,
            has_texts=False,
            has_step=False,
            speed=1 + 0.05 * math.log2(size / 128),
        )
        make_run(folder / name, made)
        records.append({"point": name, "values": {}, "run_dir": str(folder / name), "exit_code": 5 if is_bad else 0})
    (folder / "sweep.json").write_text(json.dumps(records))
    (folder / "sweep.yaml").write_text("metric: eval/loss\ndirection: minimize\n")
    return folder
