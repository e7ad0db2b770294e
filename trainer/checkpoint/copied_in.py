"""A Hugging Face folder's weights as the tensors of a checkpoint, one tensor in memory at a time."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from trainer.checkpoint.container import ContainerWriter
from trainer.checkpoint.fragments import address, file_metadata, rank_file
from trainer.checkpoint.manifest import FileFacts, check_file
from trainer.config.hf_folder import HFModel
from trainer.config.plan import RunPlan
from trainer.interchange.linked_weights import LinkedWeights
from trainer.interchange.weight_files import WeightFiles
from trainer.tensor_parallel.shard import shard_spec_of


def copy_weights(source: HFModel, plan: RunPlan, target: Path) -> dict[str, FileFacts]:
    """Write all weights of a source as one rank would, durable but for the folder's list of names.

    Args:
        source: the model.
        plan: plan of a run of it in one process.
        target: an unfinished checkpoint with an empty folder for tensors.

    Returns:
        Relative path -> size and hash of the file.

    Raises:
        CheckpointError: a tensor is missing, damaged, or of another shape, or the file differs when it is read again.
        OSError: the file cannot be written.
    """
    weights = LinkedWeights(WeightFiles(source.folder), source.family, source.values, plan.model.tensors)
    specs = {name: shard_spec_of(tensor, plan.execution.vocab_unit, 1) for name, tensor in plan.model.tensors.items()}
    keyed = {name: address("weight", spec, 0, 1, 0) for name, spec in specs.items()}
    sizes = {keyed[name][0]: math.prod(spec.global_shape) for name, spec in specs.items()}
    path = target / rank_file(0)
    writer = ContainerWriter(path, sizes, file_metadata(specs.values(), dict(keyed.values())))
    for name, spec in specs.items():
        whole = weights.read(name)
        writer.append(whole)
        # Only the rows of a vocabulary are padded, at their end.
        writer.append(torch.zeros(math.prod(spec.global_shape) - whole.numel()))
    files = {rank_file(0): writer.finish()}
    check_file(path, files[rank_file(0)])
    return files
