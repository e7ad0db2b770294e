"""Micro-batches of the data, on the device. The only file of this room that imports torch."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch

from trainer.config.plan import RunPlan
from trainer.data.capacity import check_training_capacity, check_validation_capacity
from trainer.data.dataset import SampleStream
from trainer.data.prepare import PreparedData, samples_of
from trainer.data.sampler import SampleOrder
from trainer.data.token_files import TRAIN, VALIDATION
from trainer.errors import DataError
from trainer.micro_batch import IGNORED, Documents, MicroBatch, Place


class BatchSource:
    """The micro-batches of one data-parallel rank.

    Micro-batch m of data-parallel rank d holds sequences `[(m * dp + d) * B, ... + B)` of the global batch: whatever
    the layout, a step trains on the same sequences.

    Args:
        stream: the tokens.
        plan: sizes of batch, sequence and layout.
        dp_rank: d.
        device: the device of the tensors.
    """

    def __init__(self, stream: SampleStream, plan: RunPlan, dp_rank: int, device: torch.device) -> None:
        self._stream = stream
        self._plan = plan
        self._dp_rank = dp_rank
        self._device = device

    @property
    def tokens(self) -> int:
        """Tokens of a full global batch."""
        return self._plan.tokens_per_step

    def micro_batches(self, position: int, step: int | None = None) -> list[MicroBatch]:
        """Return this rank's micro-batches of the global batch that begins `position` tokens into the stream, in order.

        Every token counts, of packed examples only the answers, and of text not the last one of a document where
        data.boundary_label is ignore. Local; no host sync.

        Args:
            position: place in the stream, in tokens.
            step: that trains on them: dropout and, in the warm-up of the batch, their number depend on it; None: they
                are not trained on.

        Raises:
            DataError: a token id is not in the vocabulary.
        """
        plan, size = self._plan, self._plan.micro_batch_size
        rows = np.arange(self._size(step)).reshape(-1, plan.data_parallel_size, size)
        found = torch.from_numpy(self._sequences(position, rows[:, self._dp_rank].reshape(-1)))
        pairs, begins = found[:2], found[2].bool() if len(found) > 2 else None
        if self._device.type == "cuda":
            pairs = pairs.pin_memory().to(self._device, non_blocking=True)
        firsts = rows[:, self._dp_rank, 0].tolist()
        places = [None if step is None else Place(plan.seed, step, first) for first in firsts]
        batches = []
        for index, (part, place) in enumerate(zip(torch.split(pairs, size, dim=1), places, strict=True)):
            # Known to the host: attention may go document by document.
            own = None if begins is None else Documents.of(begins[index * size : (index + 1) * size])
            documents = None if own is None else own.to(self._device)
            batches.append(MicroBatch.of(part[0], part[1], None, place, documents))
        return batches

    def _size(self, step: int | None) -> int:
        return self._plan.global_batch_size if step is None else self._plan.batch_sizes.at(step)

    def sample_ids(self, position: int, step: int | None = None) -> list[int]:
        """Return the indices of the data set's samples that the global batch at `position` holds, in order. Local.

        As long as a sequence is one sample, the i-th index is that of the batch's i-th sequence.

        Args:
            position: place in the stream, in tokens.
            step: that trains on them; None: the batch is a full one.
        """
        count = self.tokens if step is None else self._plan.tokens_of_step(step)
        return [int(sample) for sample in self._stream.samples(position, count)]

    def _sequences(self, position: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        seq_length, vocab_size = self._plan.execution.seq_length, self._plan.model.vocab_size
        starts = position + rows * seq_length
        pairs = self._stream.sequences(starts, seq_length)
        ids = pairs[:2]
        if ids.max() >= vocab_size:
            _, row, place = np.unravel_index(int(ids.argmax()), ids.shape)
            sample = self._stream.samples(int(starts[row] + place), 1)[0]
            raise DataError(
                f"every token id must be less than the vocabulary's size ({vocab_size}), but sample {sample} of the "
                f"data holds {ids.max()}; set model.vocab_size to that of the tokenizer that made them",
                hints=["if it is right already the data are damaged: prepare them anew"],
            )
        return pairs

    def ledger(self, previous: str, position: int, step: int | None = None) -> str:
        """Return the rolling hash after a global batch: of `previous`, the batch's position, and its token ids.

        Args:
            previous: hash before it.
            position: place in the stream, in tokens.
            step: that trains on it; None: the batch is a full one.
        """
        digest = hashlib.blake2b(f"{previous}:{position}:".encode(), digest_size=16)
        pairs = self._sequences(position, np.arange(self._size(step)))
        # A sequence at a time: its inputs, then its labels, then the numbers of its documents if it has several.
        pairs[2:] = pairs[2:].cumsum(axis=-1) - 1
        digest.update(pairs.swapaxes(0, 1).astype("<u4").tobytes())
        return digest.hexdigest()


def training_batches(
    prepared: PreparedData, plan: RunPlan, sample_length: int, dp_rank: int, device: torch.device
) -> BatchSource:
    """Return the training data of a rank, shuffled by the run's seed in samples of `sample_length` tokens.

    Raises:
        DataError: there are fewer samples than one global batch.
    """
    config = plan.config
    check_training_capacity(prepared, config)
    dataset = samples_of(prepared, config.data, TRAIN, sample_length, config.data.max_samples, IGNORED)
    if len(dataset) == 0:
        raise DataError(
            f"the training data must hold at least one sample of {sample_length} tokens, the sequence length that this "
            f"run began with, but hold {prepared.train_tokens} tokens; use the data that it began with"
        )
    return BatchSource(
        SampleStream(dataset, SampleOrder(len(dataset), config.train.seed).samples), plan, dp_rank, device
    )


def validation_batches(prepared: PreparedData, plan: RunPlan, dp_rank: int, device: torch.device) -> BatchSource:
    """Return the validation data of a rank: from the start in fixed order, again from the start when they end.

    Raises:
        DataError: there is not one sample.
    """
    check_validation_capacity(prepared, plan.config)
    dataset = samples_of(prepared, plan.config.data, VALIDATION, plan.execution.seq_length, ignored=IGNORED)

    def in_order(first: int, count: int) -> npt.NDArray[np.int64]:
        return np.arange(first, first + count, dtype=np.int64) % len(dataset)

    return BatchSource(SampleStream(dataset, in_order), plan, dp_rank, device)
