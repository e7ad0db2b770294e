"""The plan of the stream that a run reads: of one that begins, and of one that goes on with other data. No torch."""

from __future__ import annotations

from collections import Counter

from trainer.config.schema import TridentConfig
from trainer.data.blending import whole_parts
from trainer.data.prepared import PreparedData, Source, sources_of, those_of
from trainer.data.stream_order import StreamOrder
from trainer.data.stream_plan import Phase, Segment, SourceShare, StreamPlan
from trainer.data.token_files import TRAIN
from trainer.errors import DataError


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


def check_epochs(stream: StreamPlan, config: TridentConfig, tokens: int) -> None:
    """Check that no source is read more often than the run allows.

    Args:
        stream: plan of the run.
        config: config of the run.
        tokens: tokens of the whole run.

    Raises:
        DataError: one is.
    """
    most = config.data.max_epochs
    if most is None:
        return
    found = epochs_at(stream, -(-tokens // stream.sample_length))
    for name, epochs in found.items():
        if epochs > most:
            raise DataError(
                f"no source may be read more than data.max_epochs ({most:g}) times, but the run would read "
                f"{name} {epochs:.2f} times; give it more data or a smaller weight, or lower train.steps"
            )
