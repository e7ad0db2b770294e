"""Micro-batches on the device. The only file of this room that imports torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from trainer.config.plan import RunPlan
from trainer.data.capacity import check_training_capacity, check_validation_capacity
from trainer.data.dataset import TokenDataset
from trainer.data.prepare import PreparedData
from trainer.data.sampler import SampleOrder

Order = Callable[[int], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class MicroBatch:
    """Sequences that one rank puts through the model at once."""

    input_ids: torch.Tensor
    """[B, S] int64."""
    labels: torch.Tensor
    """[B, S] int64: the token after each input."""


class BatchSource:
    """The micro-batches of one data-parallel rank.

    Micro-batch m of data-parallel rank d holds samples `[(m * dp + d) * B, ... + B)` of the global batch: whatever the
    layout, a step trains on the same samples.

    Args:
        dataset: the samples.
        order: step (from 1) -> samples of its global batch.
        micro_batch_size: B.
        dp_rank: d.
        data_parallel_size: dp.
        device: where the tensors go.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        order: Order,
        micro_batch_size: int,
        dp_rank: int,
        data_parallel_size: int,
        device: torch.device,
    ) -> None:
        self._dataset = dataset
        self._order = order
        self._micro_batch_size = micro_batch_size
        self._dp_rank = dp_rank
        self._data_parallel_size = data_parallel_size
        self._device = device

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """Return this rank's micro-batches of a step, in order. Local; no host sync."""
        grouped = self._order(step).reshape(-1, self._data_parallel_size, self._micro_batch_size)
        return [self._load(samples) for samples in grouped[:, self._dp_rank]]

    def _load(self, samples: npt.NDArray[np.int64]) -> MicroBatch:
        tokens = torch.from_numpy(np.stack([self._dataset.sample(int(index)) for index in samples]))
        if self._device.type == "cuda":
            tokens = tokens.pin_memory().to(self._device, non_blocking=True)
        return MicroBatch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def ledger(self, previous: str, step: int) -> str:
        """Return the rolling hash after a step: of `previous`, the step, and every token id of the global batch."""
        digest = hashlib.blake2b(f"{previous}:{step}:".encode(), digest_size=16)
        for index in self._order(step):
            digest.update(self._dataset.sample(int(index)).tobytes())
        return digest.hexdigest()


def training_batches(prepared: PreparedData, plan: RunPlan, dp_rank: int, device: torch.device) -> BatchSource:
    """Return the training data of a rank, shuffled by the run's seed.

    Raises:
        DataError: there are fewer samples than one global batch.
    """
    config = plan.config
    check_training_capacity(prepared, config)
    dataset = TokenDataset(
        prepared.folder / "train.bin", prepared.dtype, plan.model.seq_length, config.data.max_samples
    )
    size = config.batch.global_batch_size
    order = SampleOrder(len(dataset), config.train.seed)
    return _source(dataset, lambda step: order.global_batch(step, size), plan, dp_rank, device)


def validation_batches(prepared: PreparedData, plan: RunPlan, dp_rank: int, device: torch.device) -> BatchSource:
    """Return the validation data of a rank: from the start in fixed order, again from the start when they end.

    Raises:
        DataError: there is not one sample.
    """
    check_validation_capacity(prepared, plan.config)
    dataset = TokenDataset(prepared.folder / "validation.bin", prepared.dtype, plan.model.seq_length)
    size = plan.config.batch.global_batch_size

    def order(index: int) -> npt.NDArray[np.int64]:
        return np.arange((index - 1) * size, index * size, dtype=np.int64) % len(dataset)

    return _source(dataset, order, plan, dp_rank, device)


def _source(dataset: TokenDataset, order: Order, plan: RunPlan, dp_rank: int, device: torch.device) -> BatchSource:
    return BatchSource(dataset, order, plan.config.batch.micro_batch_size, dp_rank, plan.data_parallel_size, device)
