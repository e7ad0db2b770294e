"""Tokens on disk, ready to be mapped, and the samples that they give a run. No torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from trainer.config.schema import BoundaryLabel, DataConfig, Packing, TridentConfig
from trainer.data.best_fit import BestFitDataset, packed_pieces
from trainer.data.dataset import Boundaries, PackedDataset, TokenDataset
from trainer.data.picks import Samples
from trainer.data.shard_set import ShardSet
from trainer.data.token_files import TRAIN, VALIDATION, Packed
from trainer.data.token_manifest import Manifest

ALONE = "data"
"""Name of the source of a run that has only one."""


@dataclass(frozen=True)
class PreparedData:
    """Tokens on disk, ready to be mapped."""

    folder: Path
    """Folder with manifest.json, the shards that are not read elsewhere and, if there is a tokenizer, tokenizer/."""
    vocab_size: int
    """Number of ids that the model must know: `model.vocab_size`, or the tokenizer's."""
    manifest: Manifest
    tokenizer_folder: Path | None
    fingerprint: str
    """Hash of everything that the tokens were made from; it names the folder."""
    boundaries: str | None = None
    """Hash of the places at which documents of text end, if the run looks at them."""
    attended: float | None = None
    """Mean number of tokens, in its sequence, of the document of a token; None if documents see each other."""
    sources: tuple[Source, ...] = ()
    """Sources of a blend, whose shards these are, one behind the other; none where there is one source."""

    @property
    def train_tokens(self) -> int:
        """Number of tokens to train on."""
        return self.manifest.tokens(TRAIN)

    @property
    def validation_tokens(self) -> int:
        """Number of tokens that are held out."""
        return self.manifest.tokens(VALIDATION)

    @property
    def content(self) -> str:
        """Hash of the tokens themselves, to compare with what other nodes have."""
        return self.manifest.content()

    @property
    def packed(self) -> Packed | None:
        """Facts about packed examples; None for a stream of text."""
        return self.manifest.packed

    def shards(self, part: str) -> ShardSet:
        """Return the tokens of a part as one stream."""
        return ShardSet(self.folder, self.manifest.parts.get(part, ()))


@dataclass(frozen=True)
class Source:
    """A source of the stream that a run reads."""

    name: str
    data: DataConfig
    """Its keys."""
    prepared: PreparedData

    def samples(self, part: str, length: int, ignored: int = -1) -> Samples:
        """Return its samples of a part. See `samples_of`; those to train on are `data.max_samples` at most."""
        most = self.data.max_samples if part == TRAIN else None
        return samples_of(self.prepared, self.data, part, length, most, ignored)


def sources_of(prepared: PreparedData, config: TridentConfig) -> tuple[Source, ...]:
    """Return the sources of a run's data, in the order of the blend; where there is no blend the one is called data."""
    return prepared.sources or (Source(ALONE, config.data, prepared),)


def those_of(source: Source) -> str:
    """Return words that say of which source of a blend data are; nothing where there is one source."""
    return "" if source.name == ALONE else f"those of data.blend.{source.name} "


def looks_at_documents(data: DataConfig) -> bool:
    """Return whether a run must know where documents of text end."""
    cuts = data.packing is Packing.cut
    return data.mask_documents or data.boundary_label is BoundaryLabel.ignore or not cuts


def stream_identity(prepared: PreparedData, config: TridentConfig) -> str:
    """Return a hash of everything that decides the training stream of a run that begins, for samples of one length."""
    data, seed = config.data, config.train.seed
    found = [_source_identity(source.prepared, source.data) for source in sources_of(prepared, config)]
    if prepared.sources:
        blend = [data.blend.plain_weights(), [phase.plain() for phase in data.blend_schedule]]
        decides = json.dumps([seed, found, blend])
    else:
        ((content, most, *documents),) = found
        decides = ":".join(map(str, [content, most, seed, *documents]))
    return hashlib.blake2b(decides.encode(), digest_size=16).hexdigest()


def _source_identity(prepared: PreparedData, data: DataConfig) -> list[object]:
    found: list[object] = [prepared.content, data.max_samples]
    if prepared.boundaries is not None:
        found += [prepared.boundaries, data.mask_documents, data.boundary_label.value]
    return found if data.packing is Packing.cut else [*found, data.packing.value]


def samples_of(
    prepared: PreparedData, data: DataConfig, part: str, length: int, most: int | None = None, ignored: int = -1
) -> Samples:
    """Return the samples of a part of the data, as the run's keys want them.

    Args:
        prepared: the data.
        data: the run's keys.
        part: `TRAIN` or `VALIDATION`.
        length: tokens of a sample.
        most: number of samples from the start that are used; None: all.
        ignored: label of a token after which nothing counts.
    """
    shards = prepared.shards(part)
    if prepared.packed is not None:
        return PackedDataset(shards, length, ignored, most)
    keeps_label = data.boundary_label is BoundaryLabel.keep
    if data.packing is Packing.best_fit:
        return BestFitDataset(
            shards,
            packed_pieces(prepared.folder, part, shards, length),
            length,
            prepared.manifest.eos_id or 0,
            ignored,
            is_told=data.mask_documents,
            crosses=keeps_label,
            max_samples=most,
        )
    if not looks_at_documents(data):
        return TokenDataset(shards, length, most)
    return TokenDataset(shards, length, most, Boundaries(data.mask_documents, None if keeps_label else ignored))
