"""Finding the checkpoint to go on from, and loading it into an engine of any layout."""

from __future__ import annotations

from pathlib import Path

from trainer.checkpoint.manifest import Manifest, check_content, describe_layout, read_manifest
from trainer.checkpoint.shards import TensorFolder
from trainer.checkpoint.store import TENSORS, CheckpointStore, find_checkpoint
from trainer.config.plan import RunPlan
from trainer.config.schema import TridentConfig
from trainer.engine.face import Engine
from trainer.errors import CheckpointError
from trainer.log import say, warn
from trainer.loop.state import TrainState
from trainer.topology.agreement import together
from trainer.topology.groups import DistGroup, ParallelGroups

Found = tuple[Path, Manifest]


def checkpoint_to_resume(config: TridentConfig, store: CheckpointStore, control: DistGroup) -> Found | None:
    """Return the checkpoint that `checkpoint.resume` asks for, every byte of it checked; None to start at step 1.

    Collective over `control`: ranks share the reading.

    Raises:
        CheckpointError: a named one is missing or damaged, or there are some and all are damaged.
    """
    if config.checkpoint.resume == "never":
        return None
    if config.checkpoint.resume == "auto":
        return _newest_whole(store, control)
    return together(control, lambda: _checked(find_checkpoint(Path(config.checkpoint.resume)), control))


def _checked(found: Found, control: DistGroup) -> Found:
    check_content(*found, part=control.rank, parts=control.size)
    return found


def _newest_whole(store: CheckpointStore, control: DistGroup) -> Found | None:
    steps = together(control, store.steps)
    for step in reversed(steps):
        path = store.path(step)
        try:
            return together(control, lambda path=path: _checked((path, read_manifest(path)), control))  # type: ignore[misc]
        except CheckpointError as error:
            warn(f"skipping a damaged checkpoint: {error}")
    if steps:
        # To begin anew here would overwrite what may still be rescued.
        raise CheckpointError(
            f"{store.folder} must hold a whole checkpoint to go on from, but all of its {len(steps)} are damaged",
            hints=["set run_dir to another folder to start anew, or checkpoint.resume=PATH to a whole checkpoint"],
        )
    return None


def resume(
    found: Found | None, engine: Engine, plan: RunPlan, groups: ParallelGroups, control: DistGroup
) -> TrainState:
    """Load a checkpoint into a newly built engine, or return a fresh state for None. Collective over the world.

    Raises:
        CheckpointError: it is of another model; raised on every rank.
    """
    if found is None:
        return TrainState()
    path, manifest = found
    together(control, lambda: _load(path, manifest, engine, plan, groups))
    state = TrainState.from_dict(manifest.train_state)
    here = describe_layout(plan)
    changed = [
        f"{key} {manifest.layout.get(key)} -> {value}"
        for key, value in here.items()
        if manifest.layout.get(key) != value
    ]
    say(f"resumed from {path} (step {state.step})" + (f"; changed: {', '.join(changed)}" if changed else ""))
    return state


def _load(path: Path, manifest: Manifest, engine: Engine, plan: RunPlan, groups: ParallelGroups) -> None:
    if manifest.vocab_size != plan.model.vocab_size:
        raise CheckpointError(
            f"{path} must be of a model with this vocabulary ({plan.model.vocab_size}), but has "
            f"{manifest.vocab_size}; set model.vocab_size={manifest.vocab_size}, or use the same data and tokenizer"
        )
    tensors = TensorFolder(path / TENSORS)
    rank, size = groups.tensor.rank, groups.tensor.size
    engine.restore(lambda kind, spec: tensors.read_shard(kind, spec, rank, size), manifest.scalars)
