"""Finding the checkpoint to go on from, and loading it into an engine of any layout."""

from __future__ import annotations

from dataclasses import replace

import torch

from trainer.checkpoint.base import base_files, check_base, find_base
from trainer.checkpoint.held_weights import weights_of
from trainer.checkpoint.manifest import Base, Manifest, check_content, describe_layout, file_facts, read_manifest
from trainer.checkpoint.origin import Found, Use, check_model, check_optimizer, find_origin
from trainer.checkpoint.probe import check_probe, probe_loss
from trainer.checkpoint.store import CheckpointStore
from trainer.checkpoint.stream import other_tokens
from trainer.config.plan import RunPlan
from trainer.config.schema import TridentConfig
from trainer.data.stream_plan import StreamPlan
from trainer.data.streams import WantedStream
from trainer.engine.face import Engine
from trainer.errors import CheckpointError
from trainer.log import say, warn
from trainer.loop.state import TrainState
from trainer.spec.stepping import EMA, WEIGHT
from trainer.tensor_parallel.init import Drawn, initial_of
from trainer.tensor_parallel.shard import ShardSpec
from trainer.topology.agreement import gather, together
from trainer.topology.groups import Group, ParallelGroups

_COUNTERS = ("optimizer_step", "skipped_steps", "global_steps")
"""Scalars of an engine that begin at 0."""


def checkpoint_to_resume(config: TridentConfig, store: CheckpointStore, control: Group) -> Found | None:
    """Return the checkpoint to begin from, every byte of it checked; None to start at step 1 with fresh weights.

    This is the run's own newest one; if it has none, the one that the config names. Collective over `control`: ranks
    share the reading.

    Raises:
        CheckpointError: the named one is missing or damaged, or the run has checkpoints and all are damaged.
        ConfigError: the named one leaves nothing to train.
    """
    init_from = config.checkpoint.init_from
    own = newest_own(store, control, init_from)
    if own is not None:
        return own
    # Decided by one rank: a path may mean another place on another machine.
    decided = together(control, lambda: find_origin(config, store.run_dir) if control.rank == 0 else None)
    found = gather(control, decided)[0]
    return found and together(control, lambda: _with_base(_checked(found, control), control, init_from))


def _checked(found: Found, control: Group) -> Found:
    check_content(found.path, found.manifest, part=control.rank, parts=control.size)
    return found


def _with_base(found: Found, control: Group, init_from: str | None) -> Found:
    check_base(found.path, found.manifest, init_from, part=control.rank, parts=control.size)
    return found


def newest_own(store: CheckpointStore, control: Group, init_from: str | None = None) -> Found | None:
    """Return a run's newest checkpoint that is whole, every byte of it checked; None if it has none. Collective.

    Args:
        store: the run's checkpoints.
        control: group of all ranks.
        init_from: the place of the model that adapters are added to, if it is not where it was.

    Raises:
        CheckpointError: it has checkpoints, and all are damaged; or it holds adapters, whose base is gone.
    """
    # Decided by one rank: nodes may see a shared folder change at different moments, and all must try the same ones.
    steps = gather(control, together(control, store.steps))[0]
    for step in reversed(steps):
        path = store.path(step)
        try:
            found = together(control, lambda path=path: _checked(Found(path, read_manifest(path)), control))  # type: ignore[misc]
        except CheckpointError as error:
            warn(f"skipping a damaged checkpoint: {error}")
            continue
        return together(control, lambda found=found: _with_base(found, control, init_from))  # type: ignore[misc]
    if steps:
        # Beginning anew here would overwrite checkpoints that may still be rescued.
        raise CheckpointError(
            f"{store.folder} must hold a whole checkpoint to go on from, but all of its {len(steps)} are damaged",
            hints=[
                "set run_dir to another folder, to start anew or with checkpoint.resume=PATH from a whole checkpoint"
            ],
        )
    return None


def base_of(found: Found, init_from: str | None, control: Group) -> Base:
    """Return the model that the adapters of a run which begins with `found` are added to.

    Collective over `control`: ranks share the reading.

    Raises:
        CheckpointError: it cannot be read.
    """
    base = found.manifest.base
    if base is not None:
        place = together(control, lambda: find_base(found.path, base, init_from))
        return replace(base, path=str(place))
    names = together(control, lambda: base_files(found))
    mine = names[control.rank :: control.size]
    own = together(control, lambda: {name: file_facts(found.path / name) for name in mine})
    facts = {name: one for held in gather(control, own) for name, one in held.items()}
    return Base(str(found.path), {name: facts[name] for name in names})


def starting_state(found: Found | None, plan: RunPlan, stream: str, wanted: WantedStream | None = None) -> TrainState:
    """Return the run's progress: that of the checkpoint, or the very beginning for None.

    Args:
        found: the checkpoint that `checkpoint_to_resume` returned.
        plan: numbers of this run.
        stream: identity of this run's training stream.
        wanted: that stream; None: its plan is not asked for.

    Raises:
        DataError: the run folder's own checkpoint was trained on another stream, and data.on_change is error. One that
            `checkpoint.resume` names may have been: the new stream is read from its beginning.
        CheckpointError: it does not say what was read so far, and data.on_change is continue.
    """
    if found is None or found.use is Use.weights:
        return _begun(TrainState(sample_length=plan.execution.seq_length, stream=stream), wanted)
    state = TrainState.from_dict(found.manifest.train_state)
    if state.stream == stream:
        return state if state.segments else _begun(state, wanted)
    if wanted is not None and wanted.goes_on:
        return _changed(state, found, stream, wanted)
    if found.use is Use.own:
        raise other_tokens(plan.config, found.path)
    say("other data or another seed than the checkpoint's: reading them from their first sample")
    anew = replace(state, position=0, sample_length=plan.execution.seq_length, stream=stream, segments=[])
    return _begun(anew, wanted)


def _begun(state: TrainState, wanted: WantedStream | None) -> TrainState:
    """Return the state of a run that reads one stream from its beginning."""
    return state if wanted is None else replace(state, segments=wanted.begun(state.sample_length).to_list())


def _changed(state: TrainState, found: Found, stream: str, wanted: WantedStream) -> TrainState:
    """Return the state of a run that goes on with another stream from where it is."""
    if not state.segments:
        raise CheckpointError(
            f"data.on_change=continue needs a checkpoint that says what was read so far, but {found.path} is of an "
            "earlier version; go on with the data that the run began with until the next checkpoint"
        )
    length = state.sample_length
    place = -(-state.position // length)
    after = wanted.continued(StreamPlan.from_list(length, state.segments), place)
    if place * length != state.position:
        say(f"the {place * length - state.position} tokens that are left of the sample under way are not read")
    say(f"data.on_change=continue: step {state.step + 1} reads other data, from sample {place:,} of the stream on")
    for source in after.segments[-1].sources:
        new = source.rest - source.kept
        first = f"{source.kept:,} samples left of the epoch under way and {new:,} appended ones, then " * bool(
            source.rest
        )
        say(f"data    {source.name}: {first}epochs of {source.samples:,} samples")
    return replace(state, position=place * length, stream=stream, segments=after.to_list())


def load(found: Found, engine: Engine, plan: RunPlan, groups: ParallelGroups) -> None:
    """Load a checkpoint into a newly built engine. Collective over the world.

    Raises:
        CheckpointError: it is of another model, or does not give the loss that it gave when it was saved; raised on
            every rank.
    """
    path, manifest, control = found.path, found.manifest, groups.control
    together(control, lambda: _load(found, engine, plan, groups))
    _ask_probe(manifest, engine, plan, groups)
    if found.use is Use.weights:
        step = "" if found.is_foreign else f" (its step {manifest.step})"
        say(f"began with the weights of {path}{step}: step, optimizer and schedule are new")
        return
    here = describe_layout(plan)
    changed = [
        f"{key} {manifest.layout.get(key)} -> {value}"
        for key, value in here.items()
        if manifest.layout.get(key) != value
    ]
    say(f"resumed from {path} (step {manifest.step})" + (f"; changed: {', '.join(changed)}" if changed else ""))


def _ask_probe(manifest: Manifest, engine: Engine, plan: RunPlan, groups: ParallelGroups) -> None:
    """Compare the loss on the fixed micro-batch of the run that saved a checkpoint with the saved loss."""
    if manifest.probe_loss is None:
        return
    length = manifest.layout["seq_length"]
    assert isinstance(length, int)
    shards = plan.sequence_shards
    if length % shards:
        say(
            f"sequences of {length} tokens, on which the checkpoint's loss was taken, cannot be sharded for "
            f"layout.tensor_parallel_size ({shards}): its loss is not compared"
        )
        return
    loss = probe_loss(engine, plan, groups.device, None if length == plan.execution.seq_length else length)
    saved_dtype = str(manifest.layout["dtype"])
    saved = manifest.probe_loss
    together(groups.control, lambda: check_probe(saved, loss, saved_dtype, plan.dtype))


def _load(found: Found, engine: Engine, plan: RunPlan, groups: ParallelGroups) -> None:
    path, manifest = found.path, found.manifest
    if manifest.vocab_size != plan.model.vocab_size:
        raise CheckpointError(
            f"{path} must be of a model with this vocabulary ({plan.model.vocab_size}), but has "
            f"{manifest.vocab_size}; set model.vocab_size={manifest.vocab_size}, or use the same data and tokenizer"
        )
    config = plan.config
    check_model(path, config.model, found.use)
    check_optimizer(path, config.optimizer, found.use)
    rank, size = groups.tensor.rank, groups.tensor.size
    weights = weights_of(found, plan.model, config.checkpoint.init_from)
    model, drawn = plan.model, Drawn(plan.seed, groups.tensor)
    # Adapters of a run that begins with a model which has none.
    begins = found.use is Use.weights and model.has_adapters
    new = model.tensors.keys() - {*model.base_tensors, *weights.names()} if begins else set[str]()

    def read(kind: str, spec: ShardSpec) -> torch.Tensor:
        begins = found.use is Use.weights
        if begins and kind not in (WEIGHT, EMA):
            return torch.zeros(spec.local_shape(size))
        if spec.name in new:
            return drawn(spec, initial_of(model.tensors[spec.name], plan.execution))
        # An average begins as the weights.
        return weights.read_shard(WEIGHT if begins else kind, spec, rank, size)

    # The engine's other scalar, a loss scale, stays as it is.
    fresh = {**engine.scalars(), **dict.fromkeys(_COUNTERS, 0.0)}
    engine.restore(read, fresh if found.use is Use.weights else manifest.scalars)
