"""LoRA in every layout: three steps beside PEFT, transformers and plain AdamW, and checkpoints of adapters alone."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.helpers.batches import micro_batches_of
from tests.helpers.dist import run_distributed
from tests.helpers.hf_families import TINY
from tests.helpers.lora import (
    ADAPTED,
    LR,
    STEPS,
    Expected,
    adapted_everywhere,
    layers_of,
    parameter,
    plan_for,
    save_base,
    tokens_of,
    trained_by_peft,
)
from tests.helpers.parity import Case
from trainer.checkpoint.fragments import TensorFolder
from trainer.checkpoint.store import find_checkpoint
from trainer.config.schema import LoraConfig
from trainer.resharding import reshard_verb

pytestmark = [pytest.mark.dist, pytest.mark.timeout(300)]

TOLERANCE = 1e-5
"""Of losses relative, of adapters absolute, of moments relative to the tensor's norm: fp32 sums in another order."""
OF_SQUARES = 3e-5
"""A square has twice the relative error of what is squared."""
GPT2, LLAMA = "gpt2", "llama"
_TP2, _TP2_SHARDED = Case(tp=2, zero=0), Case(tp=2, sequence_parallel=True, zero=0, recompute="full")
_STAGES, _ALL = Case(pp=2, zero=0), Case(tp=2, pp=2, sequence_parallel=True, zero=0)
ZERO = tuple(Case(dp=2, zero=stage) for stage in range(4))
RUNS: dict[int, tuple[tuple[Case, str], ...]] = {
    1: ((Case(zero=0), GPT2), (Case(zero=0), LLAMA)),
    2: (
        *((_TP2, LLAMA), (_TP2_SHARDED, GPT2), (_STAGES, GPT2)),
        *((ZERO[1], LLAMA), (ZERO[2], GPT2), (ZERO[3], LLAMA)),
    ),
    4: ((_ALL, GPT2), (_ALL, LLAMA)),
}
"""World size -> layouts and models."""
OTHERS: dict[int, tuple[tuple[Case, str], ...]] = {
    2: (
        *((_TP2, GPT2), (_TP2_SHARDED, LLAMA), (_STAGES, LLAMA)),
        *((ZERO[0], GPT2), (ZERO[0], LLAMA), (ZERO[1], GPT2), (ZERO[2], LLAMA), (ZERO[3], GPT2)),
        *((Case(dp=2, zero=1, offload="cpu"), LLAMA), (Case(dp=2, zero=2, offload="cpu"), GPT2)),
    ),
    4: ((Case(tp=2, dp=2, zero=3), GPT2), (Case(tp=2, dp=2, zero=3), LLAMA), (Case(pp=2, dp=2, zero=1), LLAMA)),
}
"""What is left, some minutes on a small machine."""


FAMILIES = tuple({tiny.architecture: name for name, tiny in reversed(TINY.items())}.values())
LAYOUTS = (Case(zero=0), _TP2, _STAGES, _ALL)
AT_ONCE = 8
"""Models in one set of ranks."""


@dataclass(frozen=True)
class Trained:
    """What one rank saw of one run."""

    name: str
    losses: list[float]
    changed: list[str]
    """Tensors of the base that are not bit for bit what they were."""


def config_for(base: Path) -> LoraConfig:
    """Return the adapters of a base: chosen ones, or all."""
    return (ADAPTED.get(base.name) or adapted_everywhere(base)).config


def _train(
    rank: int, world_size: int, runs: Sequence[tuple[Case, str]], bases: Mapping[str, Path], root: Path
) -> list[Trained]:
    return [_run(rank, world_size, case, bases[name], root / case.name / name) for case, name in runs]


class _Rank:
    """One rank of a run on a base, in a layout: begun, or gone on with from its own checkpoint."""

    def __init__(self, rank: int, world_size: int, case: Case, base: Path, run_dir: Path) -> None:
        from trainer.checkpoint.resume import base_of, checkpoint_to_resume, load, starting_state
        from trainer.checkpoint.store import CheckpointStore
        from trainer.engine.build import build_engine
        from trainer.engine.world import start_world
        from trainer.tensor_parallel.init import Reserved

        self.plan = plan_for(base, config_for(base), case, world_size)
        self.groups = start_world(self.plan.mesh, self.plan.config.runtime, torch.device("cpu"))
        self.engine = build_engine(self.plan, self.groups, source=Reserved(self.groups.tensor))
        self.store = CheckpointStore(run_dir)
        found = checkpoint_to_resume(self.plan.config, self.store, self.groups.control)
        assert found is not None
        load(found, self.engine, self.plan, self.groups)
        self.state = starting_state(found, self.plan, "")
        self.base = base_of(found, None, self.groups.control)
        self.dp_rank = self.groups.mesh.coordinate(rank).dp_rank

    def train(self, last: int) -> list[float]:
        """Train up to a step and save it; return the losses."""
        from trainer.checkpoint.save import CheckpointWriter, take_snapshot

        steps = range(self.state.step + 1, last + 1)
        batches = (micro_batches_of(tokens_of(step), self.plan, self.dp_rank, step) for step in steps)
        losses = [float(self.engine.train_step(batch, LR).loss) for batch in batches]
        self.state.step = last
        writer = CheckpointWriter(self.store, self.plan, self.groups.control)
        writer.write(take_snapshot(self.engine, self.plan, self.state, self.groups, self.base))
        return losses

    def changed(self, base: Path) -> list[str]:
        """Return the tensors of the base that are not bit for bit what they were."""
        from trainer.checkpoint.held_weights import foreign_weights

        weights, specs, tensor = foreign_weights(base, self.plan.model), self.engine.shard_specs(), self.groups.tensor
        return [
            name
            for name, values in self.engine.local_parameters().items()
            if name in self.plan.model.base_tensors
            and not torch.equal(values, weights.read_shard("weight", specs[name], tensor.rank, tensor.size))
        ]


def _run(rank: int, world_size: int, case: Case, base: Path, run_dir: Path) -> Trained:
    run = _Rank(rank, world_size, case, base, run_dir)
    found = Trained(base.name, run.train(STEPS), run.changed(base))
    del run
    gc.collect()
    return found


def _go_on(rank: int, world_size: int, cases: Sequence[Case], base: Path, run_dir: Path) -> list[float]:
    """Train a step in each layout, each going on from what the one before has saved."""
    losses = []
    for step, case in enumerate(cases, 1):
        losses += _Rank(rank, world_size, case, base, run_dir).train(step)
        gc.collect()
    return losses


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: save_base(name, root / name) for name in ADAPTED}


@pytest.fixture(scope="module")
def expected(bases: dict[str, Path]) -> dict[str, Expected]:
    return {name: trained_by_peft(base, ADAPTED[name]) for name, base in bases.items()}


@pytest.mark.parametrize(
    "case",
    [LAYOUTS[0], *(pytest.param(case, marks=pytest.mark.matrix) for case in LAYOUTS[1:])],
    ids=lambda case: case.name,
)
def test_every_family_s_steps_equal_those_of_peft(case: Case, tmp_path: Path) -> None:
    bases = {name: save_base(name, tmp_path / name) for name in FAMILIES if name not in ADAPTED}
    expected = {name: trained_by_peft(base, adapted_everywhere(base)) for name, base in bases.items()}
    names = list(bases)
    # DeepSpeed leaves the groups of every engine behind.
    for few in (names[start : start + AT_ONCE] for start in range(0, len(names), AT_ONCE)):
        check_runs([(case, name) for name in few], case.world_size, bases, expected, tmp_path / "runs")


def check_runs(
    runs: Sequence[tuple[Case, str]], world_size: int, bases: dict[str, Path], expected: dict[str, Expected], root: Path
) -> None:
    for rank in run_distributed(_train, world_size, runs, bases, root, timeout_s=240):
        for trained in rank:
            assert trained.losses == pytest.approx(expected[trained.name].losses, rel=TOLERANCE), trained.name
            assert trained.changed == []
    for case, name in runs:
        check_saved(root / case.name / name, bases[name], expected[name])


@pytest.mark.parametrize("world_size", RUNS)
def test_steps_equal_those_of_peft(
    world_size: int, bases: dict[str, Path], expected: dict[str, Expected], tmp_path: Path
) -> None:
    check_runs(RUNS[world_size], world_size, bases, expected, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", OTHERS)
def test_steps_equal_those_of_peft_in_other_layouts(
    world_size: int, bases: dict[str, Path], expected: dict[str, Expected], tmp_path: Path
) -> None:
    check_runs(OTHERS[world_size], world_size, bases, expected, tmp_path)


def check_saved(run_dir: Path, base: Path, expected: Expected) -> None:
    """Compare the adapters and moments of a run's newest checkpoint, which holds nothing else, with PEFT's."""
    path, manifest = find_checkpoint(run_dir)
    plan = plan_for(base, config_for(base), Case(zero=0), 1)
    tensors = TensorFolder(path, manifest.files)
    adapters = {name: one for name, one in plan.model.tensors.items() if one.is_adapter}
    assert set(tensors.names()) == adapters.keys()
    files = [path / name for name in manifest.files if name.startswith("tensors/")]
    headers = [8 + int.from_bytes(file.read_bytes()[:8], "little") for file in files]
    # A weight and two moments in fp32; ranks that share the only key/value head have its rows each.
    needed = 3 * 4 * sum(one.numel for one in adapters.values())
    saved = sum(file.stat().st_size for file in files) - sum(headers)
    is_shared = plan.config.model.num_key_value_heads == 1 and len(files) > 1
    assert saved == needed or (is_shared and needed < saved < 1.05 * needed)
    for kind, wanted in expected.values.items():
        layers = list(layers_of(plan, partial(tensors.read, kind)))
        found = {parameter(one, part): getattr(one, part.lower()) for one in layers for part in "AB"}
        assert found.keys() == wanted.keys()
        for name, values in wanted.items():
            error = float((found[name] - values).abs().max())
            if kind != "weight":
                error = float((found[name] - values).norm() / values.norm())
            limit = OF_SQUARES if kind == "exp_avg_sq" else TOLERANCE
            assert error < limit, f"{run_dir} {kind} {name}: {error:.2g}"


def test_a_run_goes_on_in_other_layouts_and_is_resharded(
    bases: dict[str, Path], expected: dict[str, Expected], tmp_path: Path
) -> None:
    base, run_dir = bases[LLAMA], tmp_path / "run"
    cases = (Case(tp=2, sequence_parallel=True, zero=0), Case(dp=2, zero=3), Case(pp=2, zero=0))
    for losses in run_distributed(_go_on, 2, cases, base, run_dir, timeout_s=120):
        assert losses == pytest.approx(expected[base.name].losses, rel=TOLERANCE)
    check_saved(run_dir, base, expected[base.name])
    assert reshard_verb([str(run_dir), str(tmp_path / "tp2"), "layout=tp2"]) == 0
    check_saved(tmp_path / "tp2", base, expected[base.name])
    manifests = [find_checkpoint(folder)[1] for folder in (run_dir, tmp_path / "tp2")]
    assert manifests[0].base == manifests[1].base is not None
