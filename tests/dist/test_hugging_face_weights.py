"""Weights of Hugging Face folders in stages and tensor-parallel ranks: trained steps beside transformers' own.

Every rank reads the folder by itself, straight into its layout. The other side is transformers' model with plain AdamW.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from tests.helpers.batches import micro_batches_of
from tests.helpers.dist import run_distributed
from tests.helpers.hf_families import LENGTH, TINY, VOCABULARY, hf_model
from tests.helpers.parity import OPTIMIZER, Case, config_of
from trainer.config.hf_folder import read_hf_model
from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import CheckpointConfig, DataConfig, DataSource, TridentConfig

pytestmark = [pytest.mark.dist, pytest.mark.timeout(300)]

STEPS, BATCH = 3, 4
LOSS = 1e-5
"""Relative: fp32 sums in another order, over three steps."""
FAMILIES = (
    "llama3",
    "mistral",
    "qwen2",
    "qwen3",
    "gpt2",
    "gpt_neox",
    "phi3",
    "olmo2",
    "gemma1",
    "phi",
    "falcon_7b",
    "opt",
)
LAYOUTS = {1: Case(zero=0), 2: Case(tp=2, zero=0), 4: Case(tp=2, pp=2, zero=0)}


@dataclass(frozen=True)
class Trained:
    """What one rank saw."""

    name: str
    losses: list[float]


def tokens_of(step: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(100 + step))


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


def _train(rank: int, world_size: int, case: Case, folders: Sequence[Path], run_dir: Path) -> list[Trained]:
    from trainer.checkpoint.resume import checkpoint_to_resume, load
    from trainer.checkpoint.store import CheckpointStore
    from trainer.engine.build import build_engine
    from trainer.engine.world import start_world
    from trainer.tensor_parallel.init import Reserved

    seen = []
    for folder in folders:
        plan = plan_for(folder, case, world_size)
        groups = start_world(plan.mesh, plan.config.runtime, torch.device("cpu"))
        engine = build_engine(plan, groups, source=Reserved(groups.tensor))
        found = checkpoint_to_resume(plan.config, CheckpointStore(run_dir / folder.name), groups.control)
        assert found is not None
        assert found.is_foreign
        load(found, engine, plan, groups)
        dp_rank = groups.mesh.coordinate(rank).dp_rank
        batches = (micro_batches_of(tokens_of(step), plan, dp_rank, step) for step in range(1, STEPS + 1))
        losses = [float(engine.train_step(batch, OPTIMIZER.lr).loss) for batch in batches]
        seen.append(Trained(folder.name, losses))
        del engine
        gc.collect()
    return seen


def expected_losses(folder: Path) -> list[float]:
    """Train transformers' model on the same batches."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    decays = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decays, "weight_decay": OPTIMIZER.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=OPTIMIZER.lr, betas=(OPTIMIZER.beta1, OPTIMIZER.beta2), eps=OPTIMIZER.eps)
    losses = []
    for step in range(1, STEPS + 1):
        tokens = tokens_of(step)
        logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.grad_clip)
        adam.step()
        losses.append(float(loss))
    return losses


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("sources")
    for name in FAMILIES:
        hf_model(TINY[name]).save_pretrained(root / name)
    return [root / name for name in FAMILIES]


@pytest.fixture(scope="module")
def expected(folders: list[Path]) -> dict[str, list[float]]:
    return {folder.name: expected_losses(folder) for folder in folders}


@pytest.mark.parametrize("world_size", LAYOUTS)
def test_trained_steps_equal_those_of_transformers(
    world_size: int, folders: list[Path], expected: dict[str, list[float]], tmp_path: Path
) -> None:
    ranks = run_distributed(_train, world_size, LAYOUTS[world_size], folders, tmp_path, timeout_s=240)
    for rank in ranks:
        for trained in rank:
            assert trained.losses == pytest.approx(expected[trained.name], rel=LOSS), trained.name
    assert all(losses[0] != losses[-1] for losses in expected.values())
