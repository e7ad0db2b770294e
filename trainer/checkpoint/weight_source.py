"""The weights that a run begins with, or that a verb reads: of a checkpoint, or of a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable

import torch

from trainer.checkpoint.fragments import TensorFolder
from trainer.checkpoint.origin import Found, Use
from trainer.config.hf_folder import read_hf_model
from trainer.interchange.linked_weights import LinkedWeights
from trainer.interchange.weight_files import WeightFiles
from trainer.spec.model import Model
from trainer.tensor_parallel.shard import ShardSpec

ReadWeight = Callable[[str, ShardSpec, int, int], torch.Tensor]
"""Kind of a tensor, its spec, rank and number of ranks -> this rank's shard of it, fp32 on CPU."""


def weight_reader(found: Found, model: Model) -> ReadWeight:
    """Return the function that reads the tensors of a model.

    Args:
        found: the checkpoint, or the Hugging Face folder, which has no other kind than `weight`.
        model: the model that it holds.

    Raises:
        CheckpointError: there are no tensors, they cannot be read, or they are of another model.
    """
    if not found.is_foreign:
        return TensorFolder(found.path, found.manifest.files).read_shard
    source = read_hf_model(found.path, Use.weights.value)
    weights = LinkedWeights(WeightFiles(found.path), source.family, source.values, model.tensors)
    return lambda _, spec, rank, size: weights.read_shard(spec, rank, size)
