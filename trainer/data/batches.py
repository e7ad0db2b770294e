"""Micro-batches of the data, on the device. The only file of this room that imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from trainer.config.plan import RunPlan
from trainer.data.capacity import check_training_capacity, check_validation_capacity, evaluated_sources
from trainer.data.dataset import SampleStream
from trainer.data.ledger import ledger_after
from trainer.data.picks import EVERYTHING, Needs, Rows, of_one_source
from trainer.data.prepared import PreparedData, sources_of
from trainer.data.stream_order import named_order
from trainer.data.stream_plan import StreamPlan
from trainer.data.streams import epochs_at, new_stream
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
    def names(self) -> tuple[str, ...]:
        """Names of the sources of a blend; one for data that are none."""
        return self._stream.names

    @property
    def stream(self) -> SampleStream:
        """The stream that it reads."""
        return self._stream

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
            if len(self.names) > 1:
                batch = replace(batch, sources=tuple(found.sources[here].tolist()))
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

    def epochs(self, position: int) -> dict[str, float]:
        """Return `data/epochs/NAME` of each source: how often it has been read when `position` is reached."""
        plan = self._stream.plan
        if plan is None:
            return {}
        found = epochs_at(plan, position // plan.sample_length)
        return {f"data/epochs/{name}": epochs for name, epochs in found.items()}

    def sample_ids(self, position: int, step: int | None = None) -> Sequence[int | str]:
        """Return the indices of the samples that the global batch at `position` holds, in order. Local.

        Of a blend each is NAME:INDEX, with the name of its source. As long as a sequence is one sample, the i-th index
        is that of the batch's i-th sequence.

        Args:
            position: place in the stream, in tokens.
            step: that trains on them; None: the batch is a full one.
        """
        count = self.tokens if step is None else self._plan.tokens_of_step(step)
        return self._stream.named(position, count)

    def _sequences(self, position: int, rows: npt.NDArray[np.int64], needs: Needs) -> Rows:
        seq_length, vocab_size = self._plan.execution.seq_length, self._plan.model.vocab_size
        starts = position + rows * seq_length
        found = self._stream.sequences(starts, seq_length, needs)
        for ids in (found.ids, found.labels):
            if ids is None or ids.max() < vocab_size:
                continue
            row, place = np.unravel_index(int(ids.argmax()), ids.shape)
            sample = self._stream.named(int(starts[row] + place), 1)[0]
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
        size, plan = self._size(step), self._stream.plan
        rows = self._sequences(position, np.arange(size), EVERYTHING)
        changes = (
            [] if plan is None else plan.begun_between(position, position + size * self._plan.execution.seq_length)
        )
        return ledger_after(previous, position, rows, changes)


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
    stream: StreamPlan | int,
    dp_rank: int,
    device: torch.device,
    needs: Needs = EVERYTHING,
) -> BatchSource:
    """Return the training data of a rank.

    Args:
        prepared: the data.
        plan: numbers of the run.
        stream: plan of the stream; or the length of its samples, for a run that begins.
        dp_rank: place among the ranks that read different samples.
        device: the device of the tensors.
        needs: the tokens that this rank looks at.

    Raises:
        DataError: there are fewer samples than one global batch, or a source has none.
    """
    config = plan.config
    check_training_capacity(prepared, config)
    if isinstance(stream, int):
        stream = new_stream(prepared, config, stream)
    sources = sources_of(prepared, config)
    samples = [source.samples(TRAIN, stream.sample_length, IGNORED) for source in sources]
    names = [source.name for source in sources]
    return BatchSource(SampleStream(samples, named_order(stream, names), names, stream), plan, dp_rank, device, needs)


class HeldOut(NamedTuple):
    """The validation data of a source, as a rank reads them."""

    name: str
    weight: float
    """Weight of its loss in the mean over all sources."""
    batches: BatchSource


def validation_batches(
    prepared: PreparedData, plan: RunPlan, dp_rank: int, device: torch.device, needs: Needs = EVERYTHING
) -> list[HeldOut]:
    """Return the validation data of each source: from the start in fixed order, again from the start when they end.

    Raises:
        DataError: one has not one sample.
    """
    config, found = plan.config, []
    check_validation_capacity(prepared, config)
    weights = config.data.blend.plain_weights()
    for source in evaluated_sources(prepared, config):
        samples = source.samples(VALIDATION, plan.execution.seq_length, IGNORED)
        stream = SampleStream([samples], of_one_source(partial(_in_order, len(samples))), [source.name])
        found.append(
            HeldOut(source.name, weights.get(source.name, 1.0), BatchSource(stream, plan, dp_rank, device, needs))
        )
    return found


def _in_order(samples: int, first: int, count: int) -> npt.NDArray[np.int64]:
    return np.arange(first, first + count, dtype=np.int64) % samples
