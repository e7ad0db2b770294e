"""Finding the checkpoint to go on from, and loading it into an engine of any layout."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path

from trainer.checkpoint.manifest import Manifest, check_content, describe_layout, read_manifest
from trainer.checkpoint.probe import check_probe, probe_loss
from trainer.checkpoint.shards import TensorFolder
from trainer.checkpoint.store import CONFIG, CheckpointStore, find_checkpoint
from trainer.checkpoint.stream import other_tokens
from trainer.config.compose import from_yaml
from trainer.config.plan import RunPlan, make_model_spec
from trainer.config.schema import TridentConfig
from trainer.engine.face import Engine
from trainer.errors import CheckpointError, ConfigError
from trainer.log import say, warn
from trainer.loop.state import TrainState
from trainer.topology.agreement import gather, together
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
    # Of one rank: nodes may see a shared folder change at different moments, and all must try the same ones.
    steps = gather(control, together(control, store.steps))[0]
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


def starting_state(found: Found | None, plan: RunPlan, stream: str) -> TrainState:
    """Return how far the run has come: where a checkpoint was, or the very beginning for None.

    Args:
        found: what `checkpoint_to_resume` returned.
        plan: numbers of this run.
        stream: identity of this run's training stream.

    Raises:
        DataError: the run folder's own checkpoint was trained on another stream. One that `checkpoint.resume` names
            may have been: the new stream is read from its beginning.
    """
    if found is None:
        return TrainState(sample_length=plan.model.seq_length, stream=stream)
    state = TrainState.from_dict(found[1].train_state)
    if state.stream == stream:
        return state
    if plan.config.checkpoint.resume == "auto":
        raise other_tokens(plan.config, found[0])
    say("other data or another seed than the checkpoint's: reading them from their first sample")
    return replace(state, position=0, sample_length=plan.model.seq_length, stream=stream)


def load(found: Found, engine: Engine, plan: RunPlan, groups: ParallelGroups, control: DistGroup) -> None:
    """Load a checkpoint into a newly built engine. Collective over the world.

    Raises:
        CheckpointError: it is of another model, or does not give the loss that it gave when it was saved; raised on
            every rank.
    """
    path, manifest = found
    together(control, lambda: _load(path, manifest, engine, plan, groups))
    if manifest.layout.get("seq_length") == plan.model.seq_length:
        loss = probe_loss(engine, plan, groups.device)
        saved_dtype = str(manifest.layout["dtype"])
        together(control, lambda: check_probe(manifest.probe_loss, loss, saved_dtype, plan.config.precision.dtype))
    here = describe_layout(plan)
    changed = [
        f"{key} {manifest.layout.get(key)} -> {value}"
        for key, value in here.items()
        if manifest.layout.get(key) != value
    ]
    say(f"resumed from {path} (step {manifest.step})" + (f"; changed: {', '.join(changed)}" if changed else ""))


_SAME_MODEL = (
    "hidden_size",
    "num_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "ffn_hidden_size",
    "position",
    "norm",
    "activation",
    "bias",
    "tied_embeddings",
)
"""What gives the weights their meaning. Some would fit in shape all the same, or leave tensors unread."""


def _check_model(path: Path, plan: RunPlan) -> None:
    try:
        saved = from_yaml((path / CONFIG).read_text(encoding="utf-8")).model
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path / CONFIG} must be a config that this version can read, but: {error}") from error
    there, here = make_model_spec(saved, plan.model.vocab_size, 1), plan.model
    changed = [name for name in _SAME_MODEL if getattr(there, name) != getattr(here, name)]
    if changed:
        found = ", ".join(f"model.{name}={_shown(getattr(there, name))}" for name in changed)
        wanted = ", ".join(_shown(getattr(here, name)) for name in changed)
        raise CheckpointError(
            f"{path} must be of this model, but was trained with {found} (here {wanted}); give model.* the values of "
            "the run that saved it"
        )


def _shown(value: object) -> str:
    return str(value.value if isinstance(value, Enum) else value)


def _load(path: Path, manifest: Manifest, engine: Engine, plan: RunPlan, groups: ParallelGroups) -> None:
    if manifest.vocab_size != plan.model.vocab_size:
        raise CheckpointError(
            f"{path} must be of a model with this vocabulary ({plan.model.vocab_size}), but has "
            f"{manifest.vocab_size}; set model.vocab_size={manifest.vocab_size}, or use the same data and tokenizer"
        )
    _check_model(path, plan)
    tensors = TensorFolder(path, manifest.files)
    rank, size = groups.tensor.rank, groups.tensor.size
    engine.restore(lambda kind, spec: tensors.read_shard(kind, spec, rank, size), manifest.scalars)
