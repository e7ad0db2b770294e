"""Shards of a model's weights, read from a checkpoint of Trident's or straight from a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from trainer.checkpoint.fragments import TensorFolder
from trainer.checkpoint.manifest import Manifest
from trainer.config.hf_folder import is_hf_folder, read_hf_model
from trainer.errors import CheckpointError
from trainer.interchange.linked_weights import LinkedWeights
from trainer.interchange.weight_files import WeightFiles
from trainer.spec.model import Model
from trainer.tensor_parallel.shard import ShardSpec

ReadWeights = Callable[[ShardSpec, int, int], torch.Tensor]
"""(spec, rank, number of ranks) -> that rank's shard of the weight, fp32 on CPU, padding included."""


def weights_in(path: Path, manifest: Manifest, model: Model, key: str) -> ReadWeights:
    """Return the function that reads the weights of a model. Reads headers now, data on demand.

    Args:
        path: a checkpoint, or a Hugging Face folder.
        manifest: the checkpoint's manifest, or what stands for it.
        model: the model that is computed.
        key: the key or word that names the folder; errors name it.

    Raises:
        CheckpointError: tensors are missing or damaged, or belong to nothing in the model.
    """
    if is_hf_folder(path):
        source = read_hf_model(path, key)
        return LinkedWeights(WeightFiles(path), source.family, source.values, model.tensors).read_shard
    tensors = TensorFolder(path, manifest.files)
    unread = set(tensors.names()) - set(model.tensors)
    if unread:
        raise CheckpointError(f"{path} must hold the model of its config.yaml, but also holds {min(unread)}")
    return lambda spec, rank, size: tensors.read_shard("weight", spec, rank, size)
