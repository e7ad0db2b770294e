"""Weights of Hugging Face folders in stages and tensor-parallel ranks, beside transformers' own model.

Every rank reads the folder by itself, straight into its layout. Then it trains: losses, gradients and trained weights
are those of transformers' model with plain AdamW. And it writes: logits and greedy texts are those of transformers.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.helpers import hf_oracle
from tests.helpers.batches import micro_batches_of
from tests.helpers.dist import run_distributed
from tests.helpers.hf_families import TINY, VOCABULARY, hf_model
from tests.helpers.hf_oracle import BATCH, NEW, STEPS, TEXTS, generated, logits_behind, prompts, tokens_of
from tests.helpers.parity import OPTIMIZER, Case, RankOutcome, comparable, config_of, first_moments, gathered, relative
from trainer.config.hf_folder import read_hf_model
from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import CheckpointConfig, DataConfig, DataSource, TridentConfig
from trainer.topology.groups import ParallelGroups

pytestmark = [pytest.mark.dist, pytest.mark.timeout(900)]

SAME = 1e-5
"""Of losses, of the L2 norm of each tensor and of its gradient, and absolute of logits: fp32 sums in another order."""
AT_ONCE = 8
"""Models in one set of ranks."""
LAYOUTS = {
    "single": Case(zero=0),
    "tp2": Case(tp=2, zero=0),
    "pp2": Case(pp=2, zero=0),
    "tp2_pp2": Case(tp=2, pp=2, zero=0),
}
FAMILIES = tuple({tiny.architecture: name for name, tiny in reversed(TINY.items())}.values())
"""One case of each family."""


@dataclass(frozen=True)
class Written:
    """What one rank wrote."""

    drawn: list[list[int]]
    logits: torch.Tensor | None
    """[texts, tokens, V], on the last stage."""


@dataclass(frozen=True)
class Seen:
    """What one rank saw of one model."""

    outcome: RankOutcome
    written: Written


def plan_for(folder: Path, case: Case, world_size: int) -> RunPlan:
    config: TridentConfig = config_of(case)
    model = replace(read_hf_model(folder, "SRC").model, vocab_pad_multiple=5)
    config = replace(
        config,
        model=model,
        data=DataConfig(source=DataSource.synthetic),
        batch=replace(config.batch, global_batch_size=BATCH, micro_batch_size=1),
        checkpoint=CheckpointConfig(init_from=str(folder)),
    )
    return make_plan(config, VOCABULARY, world_size)


def _train_and_write(
    rank: int, world_size: int, case: Case, folders: Sequence[Path], run_dir: Path, tokens: int
) -> list[Seen]:
    from trainer.engine.world import start_world

    seen = []
    plans = [plan_for(folder, case, world_size) for folder in folders]
    # All have the same mesh: groups are made once, since each has threads of its own.
    groups = start_world(plans[0].mesh, plans[0].config.runtime, torch.device("cpu"))
    for folder, plan in zip(folders, plans, strict=True):
        begun = prompts(folder.name)
        seen.append(Seen(_train(plan, groups, run_dir / folder.name), _write(plan, groups, folder, begun, tokens)))
        gc.collect()
    return seen


def _train(plan: RunPlan, groups: ParallelGroups, run_dir: Path) -> RankOutcome:
    from trainer.checkpoint.resume import checkpoint_to_resume, load
    from trainer.checkpoint.store import CheckpointStore
    from trainer.engine.build import build_engine
    from trainer.tensor_parallel.init import Reserved

    engine = build_engine(plan, groups, source=Reserved(groups.tensor))
    found = checkpoint_to_resume(plan.config, CheckpointStore(run_dir), groups.control)
    assert found is not None
    assert found.is_foreign
    load(found, engine, plan, groups)
    losses, norms, moments = [], [], []
    for step in range(1, STEPS + 1):
        batches = micro_batches_of(tokens_of(step), plan, groups.place.dp_rank, step)
        result = engine.train_step(batches, OPTIMIZER.lr)
        losses.append(float(result.loss))
        norms.append(float(result.grad_norm))
        if step == 1:
            moments = [fragment for fragment in engine.fragments() if fragment.kind == "exp_avg"]
    place, specs, weights = groups.place, dict(engine.shard_specs()), dict(engine.local_parameters())
    return RankOutcome(
        place.stage, place.tp_rank, place.dp_rank, tuple(losses), tuple(norms), (), specs, moments, weights
    )


def _write(plan: RunPlan, groups: ParallelGroups, folder: Path, begun: Sequence[Sequence[int]], tokens: int) -> Written:
    from trainer.checkpoint.held_weights import foreign_weights
    from trainer.generation.decoder import Decoder, Request
    from trainer.generation.sampling import Sampling
    from trainer.inference.stage import stage_model
    from trainer.pipeline.partition import stages
    from trainer.tensor_parallel.init import fill

    group = groups.tensor
    names = [layer.name for layer in stages(plan)[groups.place.stage].layers]
    model = stage_model(plan.model, plan.execution, group, names)
    weights = foreign_weights(folder, plan.model)
    fill(model, lambda spec, _: weights.read_shard("weight", spec, group.rank, group.size))
    passes: list[torch.Tensor] = []
    if model.is_last:
        model.register_forward_hook(lambda _module, _inputs, logits: passes.append(logits.clone()))
    drawn: list[list[int]] = [[] for _ in begun]

    def take(index: int, token: int) -> bool:
        drawn[index].append(token)
        return len(drawn[index]) < tokens

    requests = [Request(tuple(ids), tokens, 0, partial(take, index)) for index, ids in enumerate(begun)]
    Decoder(model, Sampling(temperature=0.0), groups.pipeline).write(requests, TEXTS)
    if not passes:
        return Written(drawn, None)
    # Each prompt is read by itself, then all texts go on together.
    first = torch.cat(passes[:TEXTS]).unsqueeze(1)
    return Written(drawn, torch.cat([first, torch.stack(passes[TEXTS:], dim=1)], dim=1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sources")
    for name, tiny in TINY.items():
        hf_model(tiny).save_pretrained(root / name)
    return {name: root / name for name in TINY}


@pytest.fixture(scope="module")
def expected(folders: dict[str, Path]) -> dict[str, hf_oracle.Trained]:
    """Results of transformers' training, each computed once, when it is first asked for."""
    return _Lazily(folders)


class _Lazily(dict[str, hf_oracle.Trained]):
    def __init__(self, folders: dict[str, Path]) -> None:
        super().__init__()
        self._folders = folders

    def __missing__(self, name: str) -> hf_oracle.Trained:
        self[name] = hf_oracle.trained(self._folders[name])
        return self[name]


def check_trained(name: str, case: Case, outcomes: Sequence[RankOutcome], oracle: hf_oracle.Trained) -> Iterator[str]:
    """Yield what differs from transformers."""
    for outcome in outcomes:
        if outcome.losses != pytest.approx(oracle.losses, rel=SAME):
            yield f"{name}: losses {outcome.losses}, not {oracle.losses}"
        if outcome.grad_norms != pytest.approx(oracle.grad_norms, rel=SAME):
            yield f"{name}: norms {outcome.grad_norms}, not {oracle.grad_norms}"
    moments = first_moments((fragment for outcome in outcomes for fragment in outcome.first_moments), case)
    scale = (1 - OPTIMIZER.beta1) * min(1.0, OPTIMIZER.grad_clip / (oracle.grad_norms[0] + 1e-6))
    weights = gathered(outcomes, case)
    assert moments.keys() == weights.keys() == oracle.weights.keys()
    for tensor, gradient in comparable(oracle.gradients).items():
        error = relative(moments[tensor] / scale, gradient)
        if not error < SAME:
            yield f"{name}: gradient of {tensor} differs by {error:.1e}"
    for tensor, weight in oracle.weights.items():
        error = relative(weights[tensor], weight)
        if not error < SAME:
            yield f"{name}: {tensor} differs by {error:.1e} after {STEPS} steps"


def check_written(name: str, folder: Path, ranks: Sequence[Written]) -> Iterator[str]:
    """Yield what differs from transformers' logits for the same texts, and from the tokens that it chooses.

    Each token must be the best one behind those before it, as in a greedy text; of two logits that are closer than sums
    in another order can move them, either may be the best.
    """
    drawn = ranks[0].drawn
    assert all(written.drawn == drawn for written in ranks), "ranks know other texts"
    theirs = logits_behind(folder, prompts(name), drawn)
    chosen = theirs.gather(-1, torch.tensor(drawn).unsqueeze(-1)).squeeze(-1)
    missed = float((theirs.max(dim=-1).values - chosen).max())
    if not missed < 2 * SAME:
        yield f"{name}: transformers chooses other tokens, by {missed:.1e}"
    if missed == 0 and len(drawn[0]) == NEW and generated(folder, prompts(name)) != drawn:
        yield f"{name}: transformers.generate writes another text"
    for written in ranks:
        if written.logits is not None:
            error = float((written.logits - theirs).abs().max())
            if not error < SAME:
                yield f"{name}: logits differ by {error:.1e}"


def differences(
    names: Sequence[str],
    layout: str,
    folders: dict[str, Path],
    expected: dict[str, hf_oracle.Trained],
    runs: Path,
    tokens: int = NEW,
) -> list[str]:
    case = LAYOUTS[layout]
    found: list[str] = []
    # DeepSpeed leaves the groups of every engine behind.
    for few in batched(names, AT_ONCE):
        chosen = [folders[name] for name in few]
        ranks = run_distributed(_train_and_write, case.world_size, case, chosen, runs, tokens, timeout_s=300)
        for name, each in zip(few, zip(*ranks, strict=True), strict=True):
            found += check_trained(name, case, [seen.outcome for seen in each], expected[name])
            found += check_written(name, folders[name], [seen.written for seen in each])
    return found


def batched(names: Sequence[str], size: int) -> list[Sequence[str]]:
    return [names[start : start + size] for start in range(0, len(names), size)]


@pytest.mark.parametrize(("layout", "tokens"), [("single", NEW), ("tp2_pp2", 16)])
def test_every_family_trains_and_writes_as_transformers_does(
    layout: str, tokens: int, folders: dict[str, Path], expected: dict[str, hf_oracle.Trained], tmp_path: Path
) -> None:
    assert differences(FAMILIES, layout, folders, expected, tmp_path, tokens) == []
    assert all(expected[name].losses[0] != expected[name].losses[-1] for name in FAMILIES)


@pytest.mark.matrix
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_case_trains_and_writes_as_transformers_does_in_every_layout(
    layout: str, folders: dict[str, Path], expected: dict[str, hf_oracle.Trained], tmp_path: Path
) -> None:
    assert differences(tuple(TINY), layout, folders, expected, tmp_path) == []
