"""Going back to the last checkpoint in the middle of a run, and on with other data."""

from __future__ import annotations

from dataclasses import replace

from trainer.checkpoint.origin import Found
from trainer.checkpoint.resume import load, newest_own, starting_state
from trainer.checkpoint.store import CheckpointStore
from trainer.config.plan import RunPlan
from trainer.engine.face import Engine
from trainer.log import say
from trainer.loop.state import TrainState
from trainer.topology.agreement import together
from trainer.topology.groups import ParallelGroups


def rewind(
    engine: Engine,
    state: TrainState,
    began_with: Found | None,
    plan: RunPlan,
    store: CheckpointStore,
    groups: ParallelGroups,
) -> TrainState:
    """Load the run's newest checkpoint, or the one it began with, into an engine that has trained.

    Collective over the world. Without any checkpoint nothing is loaded: only the skipped batches are left out.

    Args:
        engine: the run's engine.
        state: the run's progress.
        began_with: the checkpoint that the run was resumed from.
        plan: numbers of the run.
        store: the run's checkpoints.
        groups: this rank's place.

    Returns:
        The checkpoint's state, but at the data position of `state`: the data that led here are not read again.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    found = newest_own(store, groups.control, plan.config.checkpoint.init_from) or began_with
    if found is None:
        say(f"there is no checkpoint yet to go back to from step {state.step}: only its batch is left out")
        return state
    load(found, engine, plan, groups)
    recorded = str(found.manifest.train_state.get("stream", state.stream))
    earlier = together(groups.control, lambda: starting_state(found, plan, recorded))
    # A run that began from another one's checkpoint with other data counts from their first sample.
    is_new = recorded != state.stream and len(state.segments) == 1
    left_out = state.position - (0 if is_new else earlier.position)
    say(f"went back from step {state.step} to step {earlier.step}; the {left_out} tokens read since are left out")
    now = {key: getattr(state, key) for key in ("position", "sample_length", "stream", "segments")}
    return replace(earlier, **now)
