"""Fragments: any cut comes back bit for bit, and whatever is not whole is told."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch

from tests.helpers.models import drawn_gpt
from tests.unit.checkpoint.checkpoint_fixtures import cut
from trainer.checkpoint.fragments import TensorFolder, write_fragments
from trainer.config.schema import ModelConfig
from trainer.engine.face import Fragment
from trainer.tensor_parallel.shard import ShardSpec, shard_spec, without_padding
from trainer.topology.groups import FakeGroup

FULL = {"cut": torch.arange(24.0).reshape(8, 3), "whole": torch.tensor([1.0, 2.0])}
SPECS = {"cut": ShardSpec("cut", (8, 3), 0, (4, 4)), "whole": ShardSpec("whole", (2,))}


def name_of(rank: int) -> str:
    return f"rank_{rank:05d}.safetensors"


def opened(folder: Path) -> TensorFolder:
    return TensorFolder(folder, sorted(os.listdir(folder)))


def write(folder: Path, rank: int, *fragments: Iterable[Fragment]) -> Path:
    path = folder / name_of(rank)
    assert write_fragments(path, [fragment for part in fragments for fragment in part])
    return path


def write_cut(folder: Path, tp: int = 2) -> None:
    for rank in range(tp):
        write(folder, rank, cut(FULL["cut"], SPECS["cut"], rank, tp), *([cut(FULL["whole"], SPECS["whole"])][rank:]))


def write_model(folder: Path, model: ModelConfig, vocab_size: int, tp: int) -> dict[str, torch.Tensor]:
    """Write a model cut over tp ranks; return its whole tensors without padding, as one rank would build them."""
    for rank in range(tp):
        gpt = drawn_gpt(model, vocab_size, 3, FakeGroup(rank, tp))
        parts = [
            Fragment("weight", shard_spec(p), rank, tp, 0, p.detach().reshape(-1))
            for p in gpt.parameters()
            if rank == 0 or shard_spec(p).dim is not None
        ]
        write(folder, rank, parts)
    one = drawn_gpt(model, vocab_size, 3, FakeGroup(0, 1))
    return {shard_spec(p).name: without_padding(p.detach(), shard_spec(p)) for p in one.parameters()}
