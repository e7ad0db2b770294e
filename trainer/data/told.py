"""Lines that a start prints about the data that it found or made. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.schema import TridentConfig
from trainer.data.best_fit import BestFitDataset
from trainer.data.build.assembly import SKIPPED
from trainer.data.prepared import PreparedData, sources_of, those_of
from trainer.data.stream_plan import StreamPlan
from trainer.data.streams import epochs_at
from trainer.data.token_files import TRAIN


def told_examples(prepared: PreparedData, config: TridentConfig) -> str | None:
    """Return a line about packed examples, with what was left out of them; None for a stream of text."""
    packed = prepared.packed
    if packed is None:
        return None
    total = prepared.train_tokens + prepared.validation_tokens
    told = (
        f"data    {packed.examples:,} examples in {total // packed.seq_length:,} sequences of {packed.seq_length} "
        f"tokens, which they fill to {packed.tokens / max(1, total):.0%}; {packed.learned:,} tokens are learned"
    )
    if packed.dropped:
        told += f"; {packed.dropped:,} longer ones are left out (data.too_long={config.data.too_long.value})"
    if packed.truncated:
        told += f"; {packed.truncated:,} longer ones lost their end (data.too_long={config.data.too_long.value})"
    if packed.emptied:
        told += f"; {packed.emptied:,} of which no answer is left are left out"
    return told


def told_left_out(prepared: PreparedData) -> str | None:
    """Return a line about records that are not among the tokens; None if all are."""
    counts = prepared.manifest.counts
    told = []
    if counts.skipped:
        each = [one.prepared for one in prepared.sources] or [prepared]
        lists = [str(one.folder / SKIPPED) for one in each if one.manifest.counts.skipped]
        verb = "lists" if len(lists) == 1 else "list"
        told.append(f"{counts.skipped:,} records are left out since they are bad ({' and '.join(lists)} {verb} them)")
    if counts.duplicates:
        told.append(f"{counts.duplicates:,} of {counts.read:,} documents are left out since they are copies")
    return f"data    {'; '.join(told)}" if told else None


def told_documents(prepared: PreparedData, config: TridentConfig) -> str | None:
    """Return a line about documents that do not see each other; None if they do, or are examples."""
    if not config.data.mask_documents or prepared.attended is None:
        return None
    return (
        f"data    documents do not see each other: a token's own has {prepared.attended:,.0f} of the "
        f"{config.model.seq_length} tokens of its sequence in the mean"
    )


def told_packing(prepared: PreparedData, config: TridentConfig) -> Iterator[str]:
    """Yield a line for each source whose documents are packed, with the padding that this takes."""
    length = config.model.seq_length
    for source in sources_of(prepared, config):
        samples = source.samples(TRAIN, length)
        if isinstance(samples, BestFitDataset):
            share = samples.pieces.tokens / ((len(samples.pieces.offsets) - 1) * length)
            yield (
                f"data    {those_of(source)}{len(samples):,} sequences of {length} tokens, which documents fill to "
                f"{share:.1%}; {samples.pieces.cuts:,} cuts, in documents of more than {length} tokens alone"
            )


def told_epochs(config: TridentConfig, stream: StreamPlan, steps: int) -> str | None:
    """Return a line about the length of a run that is given in epochs; None if it is given in steps."""
    if config.train.epochs is None:
        return None
    samples = sum(source.samples for source in stream.segments[-1].sources)
    return (
        f"data    train.epochs={config.train.epochs:g} of {samples:,} samples of {stream.sample_length} tokens are "
        f"{steps:,} steps"
    )


def told_sources(prepared: PreparedData, config: TridentConfig, stream: StreamPlan, tokens: int) -> Iterator[str]:
    """Yield a line for each source of a blend: its share at the beginning, its samples, how often the run reads it.

    Args:
        prepared: the data.
        config: config of the run.
        stream: plan of the stream.
        tokens: tokens of the whole run.
    """
    weights = config.data.blend.plain_weights()
    epochs = epochs_at(stream, -(-tokens // stream.sample_length))
    for source in stream.segments[-1].sources if prepared.sources else ():
        share, often = weights[source.name] / sum(weights.values()), epochs[source.name]
        again = f", {often:.2f} times: its samples repeat" if often > 1 else f", {often:.0%} of them"
        yield (
            f"data    {source.name}: {share:.1%} of the stream; the run reads its {source.samples:,} samples of "
            f"{stream.sample_length} tokens{again}"
        )
