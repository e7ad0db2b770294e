"""Write the tensors of a checkpoint as the ranks of another layout would have, one tensor at a time.

Memory holds one tensor and a few blocks (`fragments.BLOCK`), however large the checkpoint is. The files are read again
and compared with the original, both as files and as tensors, before anybody may rely on them.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from trainer.checkpoint.container import ITEM_BYTES, ContainerWriter
from trainer.checkpoint.fragments import BLOCK, Place, TensorFolder, address, cut_run, file_metadata, rank_file
from trainer.checkpoint.manifest import FileFacts, Manifest, check_file
from trainer.checkpoint.placement import Placement
from trainer.config.plan import RunPlan
from trainer.errors import CheckpointError, StorageError
from trainer.spec.stepping import WEIGHT
from trainer.tensor_parallel.shard import ShardSpec

_Digests = Mapping[tuple[str, str], bytes]


def rewrite_tensors(source: Path, manifest: Manifest, plan: RunPlan, target: Path) -> dict[str, FileFacts]:
    """Write all tensors of a checkpoint in the layout of a plan, durable but for the folder's list of names.

    Args:
        source: the checkpoint, every byte of it checked.
        manifest: its manifest.
        plan: plan of a run of the same model, in another layout.
        target: an unfinished checkpoint with an empty folder for tensors.

    Returns:
        Relative path -> size and hash of the file. A rank without tensors has none.

    Raises:
        CheckpointError: a tensor is missing, does not belong to the plan's model, or differs when it is read again.
        OSError: a file cannot be written.
        StorageError: there is not enough room; nothing was written.
    """
    tensors = TensorFolder(source, manifest.files)
    model = plan.model
    kept = model.tensors.keys() - model.base_tensors.keys() if manifest.base is not None else model.tensors.keys()
    _check_model(tensors, source, plan, sum(model.tensors[name].numel for name in kept))
    placement = Placement(plan)
    contents = _contents(tensors, placement)
    _check_room(contents, target)
    writers = {rank: content.writer(target / rank_file(rank)) for rank, content in sorted(contents.items())}
    digests = _write(tensors, placement, writers)
    files = {rank_file(rank): writer.finish() for rank, writer in writers.items()}
    for name, facts in files.items():
        check_file(target / name, facts)
    _check_same(TensorFolder(target, files), digests, target)
    return files


def _check_model(tensors: TensorFolder, source: Path, plan: RunPlan, expected: int) -> None:
    # A frozen tensor has its weight alone, and every other one has all that the optimizer keeps of it.
    names, held = tensors.names(), {kind: set(tensors.names(kind)) for kind in tensors.kinds() if kind != WEIGHT}
    trained = set().union(*held.values())
    for name in sorted(trained):
        known = plan.model.tensors.get(name)
        kept = [kind for kind, of_kind in held.items() if name in of_kind]
        wanted = kept if known is None else plan.stepping.kinds(known, is_trained=True)[1:]
        for kind in sorted({*kept, *wanted}):
            if kind not in kept or kind not in wanted or name not in names:
                raise CheckpointError(f"{source} must hold weight and {kind} of the same tensors, but {name} differs")
    found = sum(math.prod(tensors.shape(name)) for name in names)
    if found != expected:
        raise CheckpointError(
            f"{source} must hold the {expected:,} parameters of the model of its config.yaml, but holds {found:,}"
        )


@dataclass
class _Content:
    """The content of one file."""

    sizes: dict[str, int] = field(default_factory=dict)
    specs: dict[str, ShardSpec] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)

    def writer(self, path: Path) -> ContainerWriter:
        return ContainerWriter(path, self.sizes, file_metadata(self.specs.values(), self.places))


def _order(tensors: TensorFolder) -> Iterator[tuple[str, str]]:
    """Yield (kind, name): the kinds of one tensor together, so that each reader stays near the same place in a file."""
    of_kind = {kind: set(tensors.names(kind)) for kind in tensors.kinds()}
    for name in tensors.names():
        for kind, names in of_kind.items():
            if name in names:
                yield kind, name


def _contents(tensors: TensorFolder, placement: Placement) -> dict[int, _Content]:
    contents: dict[int, _Content] = {}
    for kind, name in _order(tensors):
        spec = placement.spec(tensors.spec(name))
        for share in placement.shares(spec):
            content = contents.setdefault(share.rank, _Content())
            key, place = address(kind, spec, share.tp_rank, placement.tensor_parallel_size, share.start)
            content.sizes[key], content.places[key], content.specs[name] = share.numel, place, spec
    return contents


def _check_room(contents: Mapping[int, _Content], target: Path) -> None:
    needed = sum(ITEM_BYTES * numel for content in contents.values() for numel in content.sizes.values())
    free = shutil.disk_usage(target).free
    if free < needed:
        raise StorageError(
            f"{target.parent} must have room for {needed / 2**30:.2f} GiB, but has {free / 2**30:.2f} GiB; change DST",
            ["free some space, or write to a folder on a larger disk"],
        )


def _write(tensors: TensorFolder, placement: Placement, writers: Mapping[int, ContainerWriter]) -> _Digests:
    return {(kind, name): _write_tensor(tensors, kind, name, placement, writers) for kind, name in _order(tensors)}


def _write_tensor(
    tensors: TensorFolder, kind: str, name: str, placement: Placement, writers: Mapping[int, ContainerWriter]
) -> bytes:
    whole = tensors.read(kind, name)
    spec, size = placement.spec(tensors.spec(name)), placement.tensor_parallel_size
    for share in placement.shares(spec):
        end = share.start + share.numel
        for start in range(share.start, end, BLOCK):
            run = cut_run(whole, spec, share.tp_rank, size, start, min(BLOCK, end - start))
            writers[share.rank].append(run)
    return _digest(whole)


def _digest(whole: torch.Tensor) -> bytes:
    return hashlib.blake2b(whole.view(-1).numpy().data.cast("B"), digest_size=16).digest()


def _check_same(written: TensorFolder, digests: _Digests, target: Path) -> None:
    for (kind, name), digest in digests.items():
        if _digest(written.read(kind, name)) != digest:
            raise CheckpointError(f"{target} must hold {kind} of {name} as it was, but what was read back differs")
