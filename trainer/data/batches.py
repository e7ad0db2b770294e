"""Micro-batches of the data, on the device. The only file of this room that imports torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from trainer.config.plan import RunPlan
from trainer.data.capacity import check_training_capacity, check_validation_capacity
from trainer.data.dataset import SampleStream
from trainer.data.ledger import ledger_after
from trainer.data.picks import EVERYTHING, Needs, Rows, of_one_source
from trainer.data.prepared import PreparedData, samples_of
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
        needs: the tokens that this rank's stages look at; no others are read for its micro-batches.
    """

    def __init__(
        self, stream: SampleStream, plan: RunPlan, dp_rank: int, device: torch.device, needs: Needs = EVERYTHING
    ) -> None:
        self._stream = stream
        self._plan = plan
        self._dp_rank = dp_rank
        self._device = device
        self._needs = needs

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
        found = self._sequences(position, rows[:, self._dp_rank].reshape(-1), self._needs)
        ids, labels = (self._on_device(tokens) for tokens in (found.ids, found.labels))
        firsts = rows[:, self._dp_rank, 0].tolist()
        places = [None if step is None else Place(plan.seed, step, first) for first in firsts]
        batches = []
        for index, place in enumerate(places):
            here = slice(index * size, (index + 1) * size)
            # Known to the host: attention may go document by document.
            own = None if found.begins is None else Documents.of(torch.from_numpy(found.begins[here]))
            documents = None if own is None else own.to(self._device)
            inputs = self._unread(size) if ids is None else ids[here]
            batch = MicroBatch.of(inputs, None if labels is None else labels[here], None, place, documents)
            if labels is None:
                # The loss of the last stage is divided by it on every rank.
                count = inputs.numel() if found.counts is None else int(found.counts[here].sum())
                batch = replace(batch, count=count)
            batches.append(batch)
        return batches

    def _on_device(self, tokens: npt.NDArray[np.int64] | None) -> torch.Tensor | None:
        if tokens is None:
            return None
        found = torch.from_numpy(tokens)
        return found.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else found

    def _unread(self, size: int) -> torch.Tensor:
        """Return ids for a stage that looks at their shape alone: they take no memory."""
        return torch.zeros((), dtype=torch.int64, device=self._device).expand(size, self._plan.execution.seq_length)

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
        return [int(sample) for sample in self._stream.picks(position, count).samples]

    def _sequences(self, position: int, rows: npt.NDArray[np.int64], needs: Needs) -> Rows:
        seq_length, vocab_size = self._plan.execution.seq_length, self._plan.model.vocab_size
        starts = position + rows * seq_length
        found = self._stream.sequences(starts, seq_length, needs)
        for ids in (found.ids, found.labels):
            if ids is None or ids.max() < vocab_size:
                continue
            row, place = np.unravel_index(int(ids.argmax()), ids.shape)
            sample = self._stream.picks(int(starts[row] + place), 1).samples[0]
            raise DataError(
                f"every token id must be less than the vocabulary's size ({vocab_size}), but sample {sample} of the "
                f"data holds {ids.max()}; set model.vocab_size to that of the tokenizer that made them",
                hints=["if it is right already the data are damaged: prepare them anew"],
            )
        return found

    def ledger(self, previous: str, position: int, step: int | None = None) -> str:
        """Return the rolling hash after a global batch. See `ledger_after`.

        Args:
            previous: hash before it.
            position: place in the stream, in tokens.
            step: that trains on it; None: the batch is a full one.
        """
        return ledger_after(previous, position, self._sequences(position, np.arange(self._size(step)), EVERYTHING))


def needs_of(plan: RunPlan, stage: int) -> Needs:
    """Return the tokens that a rank reads for its micro-batches.

    Args:
        plan: numbers of the run.
        stage: place of the rank on the pipe axis.
    """
    pp, schedule = plan.pipeline_parallel_size, plan.schedule
    return Needs(schedule.owner(0, pp) == stage, schedule.owner(schedule.stages(pp) - 1, pp) == stage)


def training_batches(
    prepared: PreparedData,
    plan: RunPlan,
    sample_length: int,
    dp_rank: int,
    device: torch.device,
    needs: Needs = EVERYTHING,
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
    order = of_one_source(SampleOrder(len(dataset), config.train.seed).samples)
    return BatchSource(SampleStream([dataset], order), plan, dp_rank, device, needs)


def validation_batches(
    prepared: PreparedData, plan: RunPlan, dp_rank: int, device: torch.device, needs: Needs = EVERYTHING
) -> BatchSource:
    """Return the validation data of a rank: from the start in fixed order, again from the start when they end.

    Raises:
        DataError: there is not one sample.
    """
    check_validation_capacity(prepared, plan.config)
    dataset = samples_of(prepared, plan.config.data, VALIDATION, plan.execution.seq_length, ignored=IGNORED)

    def in_order(first: int, count: int) -> npt.NDArray[np.int64]:
        return np.arange(first, first + count, dtype=np.int64) % len(dataset)

    return BatchSource(SampleStream([dataset], of_one_source(in_order)), plan, dp_rank, device, needs)
