"""The plan of the stream that a run reads: of one that begins, and of one that goes on with other data. No torch."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import NamedTuple

import numpy as np

from trainer.config.schema import OnChange, Packing, TridentConfig
from trainer.data.blending import whole_parts
from trainer.data.prepared import PreparedData, Source, sources_of, stream_identity, those_of
from trainer.data.shard_set import ShardSet
from trainer.data.stream_order import StreamOrder, continued
from trainer.data.stream_plan import Phase, Segment, SourceShare, StreamPlan
from trainer.data.token_files import TRAIN, dtype_for
from trainer.data.token_manifest import Shard
from trainer.errors import DataError

_BLOCK_TOKENS = 1 << 21


def new_stream(prepared: PreparedData, config: TridentConfig, sample_length: int) -> StreamPlan:
    """Return the plan of a run that begins, in samples of `sample_length` tokens.

    Raises:
        DataError: a source has no sample.
    """
    sources = tuple(_share(source, sample_length) for source in sources_of(prepared, config))
    data = config.data
    if not prepared.sources:
        phases: tuple[Phase, ...] = (Phase(0, (1,)),)
    else:
        weights = [(0, data.blend.weights)]
        for change in data.blend_schedule:
            named = dict(change.weights)
            weights.append((-(-change.at_tokens // sample_length), tuple(named[name] for name in data.blend.names)))
        # Of two changes within one sample the later one holds.
        phases = tuple(Phase(first, whole_parts(one)) for first, one in dict(weights).items())
    return StreamPlan(sample_length, (Segment(0, config.train.seed, sources, phases),))


def _share(source: Source, sample_length: int) -> SourceShare:
    samples = len(source.samples(TRAIN, sample_length))
    if samples == 0:
        raise DataError(
            f"the training data must hold at least one sample of {sample_length} tokens, the sequence length that this "
            f"run began with, but {those_of(source)}hold {source.prepared.train_tokens} tokens; use more data"
        )
    return SourceShare(source.name, content_of(source.prepared), samples)


def content_of(prepared: PreparedData) -> str:
    """Return hash and number of tokens of each training shard: `continues` compares them."""
    shards = prepared.manifest.parts.get(TRAIN, ())
    return ",".join(f"{shard.blake2b}:{shard.tokens}" for shard in shards)


def epochs_at(stream: StreamPlan, place: int) -> dict[str, float]:
    """Return how often each source of the last segment has been read when `place` is reached, by name.

    Samples that were read of it in all segments, in epochs of the size that it has now.
    """
    order, read = StreamOrder(stream), Counter[str]()
    ends = [*(segment.first for segment in stream.segments[1:]), place]
    for index, end in enumerate(ends):
        read.update(order.counts(index, min(end, place)))
    return {source.name: read[source.name] / source.samples for source in stream.segments[-1].sources}


def check_epochs(stream: StreamPlan, config: TridentConfig, end: int) -> None:
    """Check that no source is read more often than the run allows.

    Args:
        stream: plan of the run.
        config: config of the run.
        end: place in the stream that the run ends at, in tokens.

    Raises:
        DataError: one is.
    """
    most = config.data.max_epochs
    if most is None:
        return
    found = epochs_at(stream, -(-end // stream.sample_length))
    for name, epochs in found.items():
        if epochs > most:
            raise DataError(
                f"no source may be read more than data.max_epochs ({most:g}) times, but the run would read "
                f"{name} {epochs:.2f} times; give it more data or a smaller weight, or lower train.steps"
            )


class WantedStream(NamedTuple):
    """The stream that a run asks for."""

    prepared: PreparedData
    config: TridentConfig

    @property
    def identity(self) -> str:
        """Hash of everything that decides it, as of a run that begins with it."""
        return stream_identity(self.prepared, self.config)

    @property
    def goes_on(self) -> bool:
        """True if a run that has read another one may go on with it."""
        return self.config.data.on_change is OnChange.go_on

    def begun(self, sample_length: int) -> StreamPlan:
        """Return its plan for a run that begins, in samples of `sample_length` tokens.

        Raises:
            DataError: a source has no sample.
        """
        return new_stream(self.prepared, self.config, sample_length)

    def continued(self, before: StreamPlan, place: int) -> StreamPlan:
        """Return the plan of a run that has read another stream up to a place, and goes on with this one.

        Raises:
            DataError: a source has no sample.
        """
        wanted = self.begun(before.sample_length).segments[0]
        return continued(before, wanted, place, self.continues)

    def continues(self, before: SourceShare, after: SourceShare) -> bool:
        """Return whether the tokens of a source begin with those that one had before: by their hashes."""
        if before.content == after.content:
            return True
        source = next(one for one in sources_of(self.prepared, self.config) if one.name == after.name)
        if source.prepared.packed is not None or source.data.packing is Packing.best_fit:
            # Further examples, or documents, fill up sequences that were there.
            return False
        shards = source.prepared.manifest.parts.get(TRAIN, ())
        earlier = [(one.partition(":")[0], int(one.partition(":")[2])) for one in before.content.split(",")]
        if len(shards) < len(earlier):
            return False
        *whole, (blake2b, tokens) = earlier
        if any((one.blake2b, one.tokens) != held for one, held in zip(shards, whole, strict=False)):
            return False
        # The last one may have grown.
        last = shards[len(whole)]
        if last.tokens <= tokens:
            return (last.blake2b, last.tokens) == (blake2b, tokens)
        return _hash_of_first(source.prepared, last, tokens) == blake2b


def _hash_of_first(prepared: PreparedData, shard: Shard, tokens: int) -> str:
    """Return the hash that a shard of the first `tokens` ids of this one has. Reads them."""
    held, digest = ShardSet(prepared.folder, [shard]), hashlib.blake2b(digest_size=16)
    # Ids of a file that is read where it lies are hashed in the type that a copy would have.
    kind = np.dtype(shard.dtype if shard.beside is None else dtype_for(prepared.vocab_size)).newbyteorder("<")
    for first in range(0, tokens, _BLOCK_TOKENS):
        digest.update(held.tokens(first, min(_BLOCK_TOKENS, tokens - first)).astype(kind).tobytes())
    return digest.hexdigest()
