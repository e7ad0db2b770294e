"""A resumed run is the run: bit for bit in the same layout, to rounding in any other.

Across layouts only the order of fp32 sums differs: four losses agree to 1e-6, and what is loaded is what was saved,
bit for bit. A moment that is lost, a step counter that is off by one, or a fragment in the wrong place shows at 1e-4
and more. `--run-matrix` tries all 72 pairs of layouts.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dist.resume_fixtures import (
    LAST,
    SAVED,
    Run,
    differences,
    interrupt,
    load_pairs,
    never_saved,
    run_config,
    tokens_of,
    train_sources,
)
from tests.helpers.dist import run_distributed
from tests.helpers.parity import OPTIMIZER, Case, comparable, initial_weights, relative
from tests.helpers.parity_cases import EMBEDDINGS, FIRST_LAYERS, VECTORS
from trainer.checkpoint.fragments import TensorFolder
from trainer.checkpoint.manifest import read_manifest
from trainer.checkpoint.store import CheckpointStore
from trainer.engine.face import ReadShard
from trainer.oracle.reference import reference_gradients
from trainer.tensor_parallel.shard import ShardSpec

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]

TOLERANCE = 1e-6
KINDS = ("weight", "exp_avg", "exp_avg_sq")

SAME_LAYOUT: tuple[tuple[Run, ...], ...] = (
    (
        Run(Case(zero=0)),
        Run(Case(zero=3, offload="cpu", offload_parameters=True)),
        Run(Case(offload="cpu", llama=True, tied=False), saved=10, last=14),
        Run(Case(dtype="bf16")),
        Run(Case(), dropout=0.2),
        Run(Case(zero=0, frozen=EMBEDDINGS)),
    ),
    (
        Run(Case(dp=2, zero=0), dropout=0.2),
        Run(Case(dp=2, zero=1)),
        Run(Case(dp=2, zero=2, offload="cpu")),
        Run(Case(dp=2, zero=3, llama=True, tied=False)),
        Run(Case(dp=2, zero=3, dtype="bf16")),
        Run(Case(dp=2, zero=2, dtype="fp16"), initial_scale_power=24, saved=6, last=12),
        Run(Case(dp=2, zero=1, offload="cpu", dtype="fp16"), initial_scale_power=40, saved=2, last=4),
        Run(Case(dp=2, zero=2, frozen=VECTORS)),
        Run(Case(dp=2, zero=3, dtype="bf16", frozen=EMBEDDINGS)),
    ),
    (
        Run(Case(pp=2, zero=0)),
        Run(Case(pp=2, offload="cpu")),
        Run(Case(pp=2, schedule="dualpipev"), dropout=0.2),
        Run(Case(pp=2, dtype="bf16")),
        Run(Case(pp=2, dtype="fp16"), initial_scale_power=24, saved=6, last=12),
        Run(Case(tp=2, sequence_parallel=True), dropout=0.2),
        Run(Case(tp=2, zero=3, llama=True, tied=False)),
        Run(Case(pp=2, offload="cpu", tied=False, frozen=FIRST_LAYERS)),
        Run(Case(pp=2, dtype="bf16", frozen=EMBEDDINGS)),
    ),
)
"""Each optimizer that DeepSpeed makes of ours. Tuples share their ranks."""

LAYOUTS = {
    "1x1x1": Run(Case()),
    "2x1x1": Run(Case(pp=2)),
    "1x2x1": Run(Case(tp=2, sequence_parallel=True)),
    "1x1x2": Run(Case(dp=2, zero=0)),
    "1x1x2-zero3": Run(Case(dp=2, zero=3)),
    "2x2x1": Run(Case(pp=2, tp=2)),
    "2x1x2": Run(Case(pp=2, dp=2)),
    "1x2x2-zero2-offload": Run(Case(tp=2, dp=2, zero=2, offload="cpu")),
    "2x2x2": Run(Case(pp=2, tp=2, dp=2)),
}
"""pp x tp x dp."""
WORLD_SIZES = sorted({run.case.world_size for run in LAYOUTS.values()})
PAIRS = [(source, target) for source in LAYOUTS for target in LAYOUTS if source != target]
_NAMES = list(LAYOUTS)
SAMPLE = [(name, _NAMES[(index + 4) % len(_NAMES)]) for index, name in enumerate(_NAMES)]
"""Each layout once as source and once as target."""


@pytest.mark.parametrize("runs", SAME_LAYOUT, ids=lambda runs: f"{runs[0].case.world_size}-{runs[0].name}")
def test_the_same_layout_goes_on_bit_for_bit(runs: tuple[Run, ...], tmp_path: Path) -> None:
    ranks = run_distributed(interrupt, runs[0].case.world_size, runs, tmp_path, timeout_s=60 + 30 * len(runs))
    for index, run in enumerate(runs):
        for rank, outcomes in enumerate(ranks):
            outcome = outcomes[index]
            assert outcome.resumed == outcome.went_on, f"{run.name}: losses or norms on rank {rank}"
            assert outcome.wrong == [], f"{run.name}: rank {rank}"
        scalars = ranks[0][index].scalars_when_saved
        skipped = scalars["skipped_steps"]
        assert scalars["optimizer_step"] == run.saved - skipped, run.name
        if run.case.dtype == "fp16":
            lowered = 2.0**run.initial_scale_power > scalars["cur_scale"]
            # The first overflow only uses up the patience of the scaler.
            assert skipped == run.saved or (lowered and 0 < skipped < run.saved), run.name


def test_saving_does_not_disturb_the_run(tmp_path: Path) -> None:
    run = Run(Case(zero=2))
    ranks = run_distributed(interrupt, 1, (run,), tmp_path, timeout_s=120)
    whole = run_distributed(never_saved, 1, run, timeout_s=120)
    assert ranks[0][0].went_on == whole[0][run.saved :]
    assert len(whole[0]) == run.last


FAULTS = {
    "none": Run(Case(zero=2)),
    "moments": Run(Case(zero=3)),
    "step": Run(Case(zero=2)),
    "bits": Run(Case(offload="cpu"), saved=10, last=14),
}


def _with_faults(rank: int, world_size: int, folder: Path) -> dict[str, list[str]]:
    """Resume with a part left out, one after the other; return what differs."""
    from trainer.engine import masters

    restore, replay = masters.restore, masters._replay_steps

    def no_second_moment(kind: str, spec: ShardSpec, read: ReadShard) -> torch.Tensor:
        return torch.zeros_like(read(kind, spec)) if kind == "exp_avg_sq" else read(kind, spec)

    changes: dict[str, Callable[[Any, ReadShard, Mapping[str, float]], None]] = {
        "none": restore,
        "moments": lambda engine, read, scalars: restore(
            engine, lambda kind, spec: no_second_moment(kind, spec, read), scalars
        ),
        "step": lambda engine, read, scalars: restore(engine, read, {**scalars, "optimizer_step": 2.0}),
        "bits": restore,
    }
    wrong = {}
    for fault, run in FAULTS.items():
        masters.restore = changes[fault]  # type: ignore[assignment]
        masters._replay_steps = (lambda optimizer, step: None) if fault == "bits" else replay
        wrong[fault] = interrupt(rank, world_size, (run,), folder / fault)[0].wrong
    return wrong


def test_a_part_that_is_lost_is_noticed(tmp_path: Path) -> None:
    wrong = run_distributed(_with_faults, 1, tmp_path, timeout_s=120)[0]
    assert wrong.pop("none") == []
    assert {fault for fault, names in wrong.items() if names} == {"moments", "step", "bits"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, list[float]]]:
    """Every layout trained and saved once: the folder, and how each went on."""
    folder = tmp_path_factory.mktemp("sources")
    losses: dict[str, list[float]] = {}
    for world_size in WORLD_SIZES:
        runs = {name: run for name, run in LAYOUTS.items() if run.case.world_size == world_size}
        losses |= run_distributed(train_sources, world_size, runs, folder, timeout_s=300)[0]
    return folder, losses


def _tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    found = CheckpointStore(run_dir).newest_valid()
    assert found is not None
    path, manifest = found
    tensors = TensorFolder(path, manifest.files)
    return {f"{kind}/{name}": tensors.read(kind, name) for kind in KINDS for name in tensors.names(kind)}


def _check_pairs(
    pairs: Sequence[tuple[str, str]], world_size: int, sources: tuple[Path, Mapping[str, list[float]]]
) -> None:
    folder, undisturbed = sources
    mine = [pair for pair in pairs if LAYOUTS[pair[1]].case.world_size == world_size]
    ranks = run_distributed(load_pairs, world_size, mine, LAYOUTS, folder, timeout_s=60 + 30 * len(mine))
    for (source, target), losses in zip(mine, ranks[0], strict=True):
        again = folder / f"{source}_in_{target}"
        wrong = differences(_tensors(folder / source), _tensors(again))
        assert not wrong, f"{source} -> {target}: {wrong[:3]} were not loaded as they were saved"
        shutil.rmtree(again)
        worst = max(abs(a - b) / b for a, b in zip(losses, undisturbed[source], strict=True))
        print(f"{source} -> {target}: losses {worst:.1e}")  # noqa: T201
        assert len(losses) == LAST - SAVED
        assert worst < TOLERANCE, f"{source} -> {target}"


FROZEN = {
    "stages": Run(Case(pp=2, tied=False, frozen=FIRST_LAYERS)),
    "zero3": Run(Case(dp=2, zero=3, tied=False, frozen=FIRST_LAYERS)),
    "tensor": Run(Case(tp=2, zero=0, tied=False, frozen=FIRST_LAYERS)),
}
FROZEN_PAIRS = [("stages", "zero3"), ("zero3", "tensor"), ("tensor", "stages")]


OPTIONS = {
    "stages": Run(Case(pp=2, zero=0, options="cohere")),
    "zero3": Run(Case(dp=2, zero=3, options="cohere")),
    "tensor": Run(Case(tp=2, options="cohere")),
}
"""One key/value head, which both tensor-parallel ranks share, and a tied head with a bias of its own."""


def test_shared_heads_and_the_bias_of_a_tied_head_go_on_in_other_layouts(tmp_path: Path) -> None:
    losses = run_distributed(train_sources, 2, OPTIONS, tmp_path, timeout_s=150)[0]
    found = run_distributed(load_pairs, 2, FROZEN_PAIRS, OPTIONS, tmp_path, timeout_s=150)[0]
    for (source, target), again in zip(FROZEN_PAIRS, found, strict=True):
        assert again == pytest.approx(losses[source], rel=TOLERANCE), f"{source} -> {target}"
        saved = _tensors(tmp_path / source)
        assert not differences(saved, _tensors(tmp_path / f"{source}_in_{target}"))
        assert saved["weight/blocks.0.attention.qkv.weight"].shape == (64 + 2 * 4, 64)
        assert saved["exp_avg/head.bias"].any()


def test_frozen_tensors_are_saved_by_every_layout_and_read_by_another(tmp_path: Path) -> None:
    losses = run_distributed(train_sources, 2, FROZEN, tmp_path, timeout_s=150)[0]
    found = run_distributed(load_pairs, 2, FROZEN_PAIRS, FROZEN, tmp_path, timeout_s=150)[0]
    for (source, target), again in zip(FROZEN_PAIRS, found, strict=True):
        assert again == pytest.approx(losses[source], rel=TOLERANCE), f"{source} -> {target}"
        saved = _tensors(tmp_path / source)
        assert not differences(saved, _tensors(tmp_path / f"{source}_in_{target}"))
        assert "weight/embedding.weight" in saved
        assert not [name for name in saved if name.startswith(("exp_avg/blocks.0.", "exp_avg_sq/embedding"))]


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_other_layouts_go_on(world_size: int, sources: tuple[Path, Mapping[str, list[float]]]) -> None:
    _check_pairs(SAMPLE, world_size, sources)


@pytest.mark.matrix
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_every_layout_goes_on_in_every_other(world_size: int, sources: tuple[Path, Mapping[str, list[float]]]) -> None:
    _check_pairs(PAIRS, world_size, sources)


def test_the_sample_has_each_layout_on_both_sides() -> None:
    assert sorted(source for source, _ in SAMPLE) == sorted(target for _, target in SAMPLE) == sorted(LAYOUTS)
    assert len(PAIRS) == 72
    assert not set(SAMPLE) - set(PAIRS)


def test_a_moment_in_the_wrong_place_is_noticed() -> None:
    good = {"exp_avg/w": torch.tensor([1.0, 2.0]), "scalar/step": 3.0}
    assert differences(good, {**good, "exp_avg/w": torch.tensor([2.0, 1.0])}) == ["exp_avg/w"]
    assert differences(good, {"exp_avg/w": good["exp_avg/w"]}) == ["scalar/step"]
    assert differences(good, {**good, "scalar/step": 4.0}) == ["scalar/step"]
    assert differences(good, dict(good)) == []


def _adam_by_hand() -> dict[str, torch.Tensor]:
    """Return weights and moments after SAVED steps, from the paper's formulas (Loshchilov and Hutter, 1711.05101)."""
    config = run_config(LAYOUTS["1x1x1"])
    weights = dict(initial_weights(config))
    first = {name: torch.zeros_like(w) for name, w in weights.items()}
    second = {name: torch.zeros_like(w) for name, w in weights.items()}
    beta1, beta2 = OPTIMIZER.beta1, OPTIMIZER.beta2
    for step in range(1, SAVED + 1):
        tokens = tokens_of(step)
        _, gradients = reference_gradients(config.model, weights, tokens[:, :-1], tokens[:, 1:])
        norm = math.sqrt(sum(float(g.double().pow(2).sum()) for g in gradients.values()))
        clip = min(1.0, OPTIMIZER.grad_clip / (norm + 1e-6))
        for name, gradient in gradients.items():
            first[name] = beta1 * first[name] + (1 - beta1) * clip * gradient
            second[name] = beta2 * second[name] + (1 - beta2) * (clip * gradient) ** 2
            decay = OPTIMIZER.weight_decay if gradient.ndim >= 2 else 0.0
            root = (second[name] / (1 - beta2**step)).sqrt() + OPTIMIZER.eps
            update = first[name] / (1 - beta1**step) / root
            weights[name] = weights[name] - OPTIMIZER.lr * (decay * weights[name] + update)
    moments = {"exp_avg": comparable(first), "exp_avg_sq": comparable(second), "weight": weights}
    return {f"{kind}/{name}": tensor for kind, found in moments.items() for name, tensor in found.items()}


def test_what_is_saved_is_what_adamw_says(sources: tuple[Path, Mapping[str, list[float]]]) -> None:
    expected = _adam_by_hand()
    for name in LAYOUTS:
        found = _tensors(sources[0] / name)
        assert found.keys() >= expected.keys()
        worst = max((relative(found[key], tensor), key) for key, tensor in expected.items())
        print(f"{name}: {worst}")  # noqa: T201
        assert worst[0] < 1e-5, f"{name}: {worst[1]}"
        path = CheckpointStore(sources[0] / name).path(SAVED)
        assert read_manifest(path).scalars["optimizer_step"] == SAVED
