"""The data of a blend: each source prepared on its own, and all of them as one. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import TypeVar

from trainer.config.blend_sources import source_configs
from trainer.config.schema import TridentConfig
from trainer.data.prepared import PreparedData, Source
from trainer.data.token_files import Packed
from trainer.data.token_manifest import PARTS, Counts, Manifest, Shard
from trainer.errors import DataError

T = TypeVar("T")


def blended(config: TridentConfig, prepare: Callable[[TridentConfig], PreparedData]) -> PreparedData:
    """Return the data of a blend.

    Args:
        config: config of the run.
        prepare: returns the data of the config of a source.

    Raises:
        DataError: as `prepare`; it names the source.
    """
    return joined(config, {name: (own, data) for name, own, data in _found(config, prepare)})


def blended_where_there(
    config: TridentConfig, look_up: Callable[[TridentConfig], PreparedData | None]
) -> PreparedData | None:
    """Return the data of a blend, or None if `look_up` finds none of a source.

    Raises:
        DataError: as `look_up`; it names the source.
    """
    found = list(_found(config, look_up))
    there = {name: (own, data) for name, own, data in found if data is not None}
    return joined(config, there) if len(there) == len(found) else None


def _found(config: TridentConfig, find: Callable[[TridentConfig], T]) -> Iterator[tuple[str, TridentConfig, T]]:
    for name, own in source_configs(config).items():
        try:
            yield name, own, find(own)
        except DataError as error:
            raise DataError(f"data.blend.{name}: {error}", error.hints) from error


def joined(config: TridentConfig, prepared: Mapping[str, tuple[TridentConfig, PreparedData]]) -> PreparedData:
    """Return sources as one.

    Args:
        config: config of the run.
        prepared: name -> config and data of each source, in the order of the blend.
    """
    sources = tuple(Source(name, own.data, data) for name, (own, data) in prepared.items())
    first = sources[0].prepared
    fingerprint = "-".join(one.prepared.fingerprint for one in sources)
    attended = [one.prepared.attended for one in sources]
    tokenizers = (one.prepared.tokenizer_folder for one in sources)
    return replace(
        first,
        manifest=_manifest(sources),
        tokenizer_folder=next((folder for folder in tokenizers if folder is not None), None),
        fingerprint=hashlib.blake2b(fingerprint.encode(), digest_size=12).hexdigest(),
        boundaries=None if first.boundaries is None else "-".join(str(one.prepared.boundaries) for one in sources),
        attended=_mean_attended(config, [one for one in attended if one is not None]),
        sources=sources,
    )


def _mean_attended(config: TridentConfig, attended: list[float]) -> float | None:
    """Return the mean by the weights at the beginning; None if documents see each other."""
    weights = config.data.blend.weights
    if len(attended) < len(weights):
        return None
    return sum(map(float.__mul__, weights, attended)) / sum(weights)


def _manifest(sources: tuple[Source, ...]) -> Manifest:
    """Return the description of all shards, one source behind the other."""
    manifests = [one.prepared.manifest for one in sources]

    def shards(part: str) -> tuple[Shard, ...]:
        return tuple(
            shard.outside(one.prepared.folder) for one in sources for shard in one.prepared.manifest.parts.get(part, ())
        )

    return replace(
        manifests[0],
        name="-".join(one.name for one in sources),
        parts={part: shards(part) for part in PARTS},
        counts=Counts(*(sum(values) for values in zip(*(vars(one.counts).values() for one in manifests), strict=True))),
        inputs=tuple(chain.from_iterable(one.inputs for one in manifests)),
        sizes={},
        packed=_packed([one.packed for one in manifests if one.packed is not None]),
    )


def _packed(packed: list[Packed]) -> Packed | None:
    if not packed:
        return None
    sums = [sum(values) for values in zip(*(list(vars(one).values())[1:] for one in packed), strict=True)]
    return Packed(packed[0].seq_length, *sums)
