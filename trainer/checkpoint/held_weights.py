"""The weights of a checkpoint, whether it holds all of them or adapters alone, and those of both put together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from trainer.checkpoint.base import find_base
from trainer.checkpoint.fragments import TensorFolder
from trainer.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from trainer.checkpoint.origin import Found
from trainer.config.hf_folder import read_hf_model
from trainer.config.lora import adapted_linears
from trainer.errors import CheckpointError
from trainer.interchange.linked_weights import LinkedWeights
from trainer.interchange.weight_files import WeightFiles
from trainer.spec.model import Model
from trainer.spec.parts import Linear
from trainer.spec.stepping import EMA, WEIGHT
from trainer.tensor_parallel.shard import ShardSpec, shard, with_padding


class Weights(Protocol):
    """Tensors by name, whatever files they are in."""

    def names(self) -> list[str]:
        """Return the names of all weights."""

    def read(self, kind: str, name: str) -> torch.Tensor:
        """Return a whole tensor without vocabulary padding, fp32 on CPU.

        Raises:
            CheckpointError: it is not there, or not all of it.
        """

    def read_shard(self, kind: str, spec: ShardSpec, rank: int, size: int) -> torch.Tensor:
        """Return rank `rank`'s shard of a tensor as `spec` shards it for `size` ranks, padding included.

        Raises:
            CheckpointError: as `read`, or it has another shape.
        """


def averaged_weights(checkpoint: Path, manifest: Manifest, model: Model) -> Weights:
    """Return the average of the weights of a checkpoint's run; see `AveragedWeights`."""
    own = TensorFolder(checkpoint, manifest.files)
    return AveragedWeights(open_weights(checkpoint, manifest, model), own, checkpoint)


def weights_of(found: Found, model: Model, init_from: str | None = None) -> Weights:
    """Return the weights of a checkpoint or of a Hugging Face folder.

    Args:
        found: the checkpoint or the folder.
        model: its model.
        init_from: as for `open_weights`.

    Raises:
        CheckpointError: as `open_weights`.
    """
    if found.is_foreign:
        return foreign_weights(found.path, model)
    return open_weights(found.path, found.manifest, model, init_from)


def open_weights(checkpoint: Path, manifest: Manifest, model: Model, init_from: str | None = None) -> Weights:
    """Return the weights of a checkpoint.

    Args:
        checkpoint: the checkpoint.
        manifest: its manifest.
        model: its model.
        init_from: the place of the base, if it is not where it was.

    Raises:
        CheckpointError: tensors are missing, or the base is missing or another one.
    """
    own = TensorFolder(checkpoint, manifest.files)
    if manifest.base is None:
        return own
    path = find_base(checkpoint, manifest.base, init_from)
    if MANIFEST in manifest.base.files:
        return AdaptedWeights(own, TensorFolder(path, read_manifest(path).files))
    return AdaptedWeights(own, foreign_weights(path, model))


def foreign_weights(folder: Path, model: Model) -> ForeignWeights:
    """Return the weights of a Hugging Face folder, under our names.

    Args:
        folder: the folder.
        model: our model; the folder has what is not an adapter.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or belongs to nothing.
    """
    source = read_hf_model(folder, "checkpoint.init_from")
    return ForeignWeights(LinkedWeights(WeightFiles(folder), source.family, source.values, model.base_tensors), model)


class _ReadWhole:
    """Weights whose shards are cut from whole tensors."""

    def read(self, kind: str, name: str) -> torch.Tensor:
        """Return a whole tensor."""
        raise NotImplementedError

    def read_shard(self, kind: str, spec: ShardSpec, rank: int, size: int) -> torch.Tensor:
        """Return a shard of a tensor."""
        return shard(with_padding(self.read(kind, spec.name), spec), spec, rank, size)


class ForeignWeights(_ReadWhole):
    """The weights of a Hugging Face folder."""

    def __init__(self, linked: LinkedWeights, model: Model) -> None:
        self._linked = linked
        self._names = sorted(model.base_tensors)

    def names(self) -> list[str]:
        """Return the names of all weights."""
        return self._names

    def read(self, kind: str, name: str) -> torch.Tensor:
        """Return a whole tensor; there are no moments."""
        assert kind == "weight", "a folder of another library has weights alone"
        return self._linked.read(name)


class AdaptedWeights:
    """The adapters of one checkpoint, with their moments, and the weights of another that they are added to."""

    def __init__(self, adapters: Weights, base: Weights) -> None:
        self._adapters, self._base = adapters, base
        self._own = set(adapters.names())

    def names(self) -> list[str]:
        """Return the names of all weights."""
        return sorted(self._own | set(self._base.names()))

    def _of(self, name: str) -> Weights:
        return self._adapters if name in self._own else self._base

    def read(self, kind: str, name: str) -> torch.Tensor:
        """Return a whole tensor."""
        return self._of(name).read(kind, name)

    def read_shard(self, kind: str, spec: ShardSpec, rank: int, size: int) -> torch.Tensor:
        """Return a shard of a tensor."""
        return self._of(spec.name).read_shard(kind, spec, rank, size)


class AveragedWeights(_ReadWhole):
    """The average of a run's weights in place of the weights that it trains; frozen ones are as they are.

    Args:
        weights: the checkpoint's weights.
        tensors: the checkpoint's own tensors.
        checkpoint: the checkpoint, as messages name it.

    Raises:
        CheckpointError: there is no average.
    """

    def __init__(self, weights: Weights, tensors: TensorFolder, checkpoint: Path) -> None:
        self._weights = weights
        self._averaged = set(tensors.names(EMA))
        if not self._averaged:
            raise CheckpointError(
                f"{checkpoint} must hold an average of its weights, but its run had no optimizer.ema_decay; leave ema "
                "out"
            )

    def names(self) -> list[str]:
        """Return the names of all weights."""
        return self._weights.names()

    def read(self, kind: str, name: str) -> torch.Tensor:
        """Return a whole tensor."""
        return self._weights.read(EMA if kind == WEIGHT and name in self._averaged else kind, name)


class MergedWeights(_ReadWhole):
    """The weights of a model without adapters that computes the same: W + scale x B A, in fp32.

    Args:
        weights: weights and adapters.
        model: the model with its adapters.
        adds: false to leave out what the adapters add.
    """

    def __init__(self, weights: Weights, model: Model, adds: bool = True) -> None:
        self._weights = weights
        self._adapted = linears_by_weight(model) if adds else {}
        self._names = sorted(set(weights.names()) - {name for name, one in model.tensors.items() if one.is_adapter})

    def names(self) -> list[str]:
        """Return the names of all weights."""
        return self._names

    def read(self, kind: str, name: str) -> torch.Tensor:
        """Return a whole tensor, with what its adapters add."""
        whole = self._weights.read(kind, name)
        if name not in self._adapted:
            return whole
        layer, linear = self._adapted[name]
        starts = [sum(linear.sections[:index]) for index in range(len(linear.sections))]
        for adapter in linear.adapters:
            a, b = (self._weights.read(kind, one.name) for one in linear.adapter_tensors(layer, adapter))
            whole.narrow(0, starts[adapter.first], len(b)).addmm_(b, a, alpha=adapter.scale)
        return whole


def linears_by_weight(model: Model) -> Mapping[str, tuple[str, Linear]]:
    """Return name of a weight -> global name and entry of its layer, for all that have adapters."""
    return {
        f"blocks.{index}.{name}.weight": (f"blocks.{index}.{name}", linear)
        for index, block in enumerate(model.blocks)
        for name, linear in adapted_linears(block).items()
    }
