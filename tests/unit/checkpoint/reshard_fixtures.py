"""A run folder with a checkpoint of random tensors, without training; and the nine layouts that are tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from tests.helpers.models import drawn_gpt
from tests.unit.checkpoint.checkpoint_fixtures import KINDS
from trainer.checkpoint.fragments import TensorFolder, write_fragments
from trainer.checkpoint.manifest import MANIFEST, Manifest, describe_layout, file_facts, read_manifest
from trainer.checkpoint.store import CheckpointStore
from trainer.cli import main
from trainer.config.compose import to_yaml
from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import (
    ActivationKind,
    BatchConfig,
    DataConfig,
    DataSource,
    ModelConfig,
    NormKind,
    PositionKind,
    TridentConfig,
)
from trainer.engine.face import Fragment
from trainer.loop.state import TrainState
from trainer.run_paths import CONFIG, TENSORS, TOKENIZER
from trainer.tensor_parallel.shard import shard_spec, with_padding, without_padding

STEP = 7
VOCABULARY = 61
"""With a multiple of 5, padded to another size for each tensor-parallel size: 65, 70, 80."""
GPT2 = ModelConfig(
    hidden_size=16,
    num_layers=2,
    num_attention_heads=4,
    ffn_hidden_size=24,
    seq_length=8,
    vocab_size=VOCABULARY,
    vocab_pad_multiple=5,
)
LLAMA = replace(
    GPT2,
    num_layers=4,
    num_key_value_heads=4,
    position=PositionKind.rope,
    norm=NormKind.rmsnorm,
    activation=ActivationKind.swiglu,
    bias=False,
    tied_embeddings=False,
)


def words(pp: int = 1, tp: int = 1, dp: int = 1, *more: str) -> list[str]:
    sizes = {"pipeline": pp, "tensor": tp, "data": dp}
    return [f"layout.{axis}_parallel_size={size}" for axis, size in sizes.items()] + ["zero.stage=1", *more]


LAYOUTS = {
    "1x1x1": words(),
    "2x1x1": words(pp=2),
    "1x2x1": words(tp=2),
    "1x1x2": words(dp=2),
    "2x2x1": words(pp=2, tp=2),
    "2x1x2": words(pp=2, dp=2),
    "2x2x2": words(2, 2, 2),
    "1x1x2-zero3": [*words(dp=2)[:-1], "zero.stage=3"],
    "1x2x2-zero2-offload": [*words(tp=2, dp=2)[:-1], "zero.stage=2", "zero.offload=cpu"],
}
"""pp x tp x dp."""


def config_of(model: ModelConfig = GPT2) -> TridentConfig:
    return TridentConfig(
        model=model, data=DataConfig(source=DataSource.synthetic), batch=BatchConfig(global_batch_size=4)
    )


def plan_of(config: TridentConfig) -> RunPlan:
    assert config.model.vocab_size is not None
    return make_plan(config, config.model.vocab_size)


def random_fragments(config: TridentConfig, seed: int = 11) -> list[Fragment]:
    """Return what a single rank would write if every tensor were random."""
    gpt = drawn_gpt(config.model, plan_of(config).model.vocab_size, 3)
    generator = torch.Generator().manual_seed(seed)
    fragments = []
    for kind in KINDS:
        for parameter in gpt.parameters():
            cut = shard_spec(parameter)
            drawn = torch.randn(without_padding(parameter, cut).shape, generator=generator)
            fragments.append(Fragment(kind, cut, 0, 1, 0, with_padding(drawn, cut).reshape(-1)))
    return fragments


def make_run(
    run_dir: Path,
    model: ModelConfig = GPT2,
    step: int = STEP,
    fragments: list[Fragment] | None = None,
    seed: int = 11,
) -> Path:
    """Make a run folder with one checkpoint, and return the checkpoint."""
    config = replace(config_of(model), run_dir=str(run_dir))
    checkpoint = CheckpointStore(run_dir).path(step)
    (checkpoint / TENSORS).mkdir(parents=True)
    write_fragments(checkpoint / TENSORS / "rank_00000.safetensors", fragments or random_fragments(config, seed))
    (checkpoint / CONFIG).write_text(to_yaml(config))
    (run_dir / CONFIG).write_text(to_yaml(config))
    for folder in (run_dir / TOKENIZER, checkpoint / TOKENIZER):
        folder.mkdir(exist_ok=True)
        (folder / "kind.json").write_text('{"kind": "bytes"}')
    seal(checkpoint, step, config)
    return checkpoint


def seal(checkpoint: Path, step: int, config: TridentConfig) -> None:
    """Write a manifest for what is there."""
    names = sorted(p.relative_to(checkpoint).as_posix() for p in checkpoint.rglob("*") if p.is_file())
    manifest = Manifest(
        step=step,
        vocab_size=plan_of(config).model.vocab_size,
        train_state=TrainState(step, 10, 20, "abc", sample_length=8, stream="s").to_dict(),
        scalars={"optimizer_step": 7.0, "skipped_steps": 0.0, "global_steps": 7.0},
        probe_loss=4.5,
        layout=describe_layout(plan_of(config)),
        versions={"torch": "1"},
        files={name: file_facts(checkpoint / name) for name in names if name != MANIFEST},
    )
    (checkpoint / MANIFEST).write_text(manifest.to_json())


def reshard(source: Path, target: Path, *overrides: str) -> int:
    return main(["reshard", str(source), str(target), *overrides])


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of a checkpoint, without padding."""
    tensors = TensorFolder(checkpoint, read_manifest(checkpoint).files)
    return {f"{kind}/{name}": tensors.read(kind, name) for kind in KINDS for name in tensors.names(kind)}


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def checkpoint_of(run_dir: Path) -> Path:
    return CheckpointStore(run_dir).path(STEP)
