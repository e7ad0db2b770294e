"""The composition root of one rank: each line uses the results of the lines before."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from datetime import timedelta

from torch._C._distributed_c10d import Store

from trainer import interruption
from trainer.beginning import Beginning
from trainer.checkpoint.checkpoint_hook import CheckpointHook
from trainer.checkpoint.manifest import Base
from trainer.checkpoint.origin import Found, Use, find_origin, lineage
from trainer.checkpoint.resume import base_of, checkpoint_to_resume, load, starting_state
from trainer.checkpoint.rewind import rewind
from trainer.config.plan import RunPlan, hang_timeout_s, make_mesh, make_plan
from trainer.config.schema import RuntimeConfig, TridentConfig
from trainer.data.batches import needs_of, training_batches, validation_batches
from trainer.data.build.schedule import Share
from trainer.data.epochs import with_steps
from trainer.data.prepare import prepare
from trainer.data.prepared import PreparedData
from trainer.data.stream_plan import StreamPlan
from trainer.data.streams import WantedStream, check_epochs
from trainer.engine.build import build_engine
from trainer.engine.face import Engine
from trainer.engine.world import check_precision, choose_device, start_world, stop_world
from trainer.errors import DataError, Preempted, TridentError
from trainer.evaluation.tasks_hook import TasksHook
from trainer.kernels.attention_backend import attention_kernel
from trainer.kernels.processor import multiplies_by_onednn
from trainer.launcher.attempts import restarted_by
from trainer.launcher.environment import World, node_of
from trainer.launcher.guard import RankGuard
from trainer.launcher.output import send_output_to
from trainer.launcher.watchdog import Watchdog
from trainer.log import conclude, say, use_terminal, warn
from trainer.loop.events import Hook, RunEnd
from trainer.loop.recheck import Recheck
from trainer.loop.replicas import ReplicaCheck
from trainer.loop.session import Session
from trainer.loop.state import TrainState
from trainer.loop.stop import StopRequest
from trainer.loop.train import Batches, Loop
from trainer.metrics.memory import MemoryMeter
from trainer.metrics.sinks import RunFacts, build_metrics, forget_rows
from trainer.out_of_memory import MemoryWatch
from trainer.pipeline.machines import placement_warning
from trainer.planner.foresee import Foresight, explain
from trainer.profiling.phases import MarkedProgress
from trainer.profiling.profile_hook import ProfileHook
from trainer.profiling.timeline_hook import TimelineHook
from trainer.progress import BUILDING, CHECKING, JOINING, LOADING, PREPARING, TESTING, Progress, current, follow
from trainer.proving.self_test import self_test
from trainer.reporting.report_hook import ReportHook
from trainer.run_folder import RunFolder
from trainer.samples.samples_hook import SamplesHook
from trainer.tensor_parallel.init import Reserved
from trainer.topology.agreement import gather, together
from trainer.topology.dist_group import host_group
from trainer.topology.groups import Group, ParallelGroups


def train_rank(
    config: TridentConfig,
    world: World,
    store: Store | None = None,
    has_begun: bool = False,
    foresight: Foresight | None = None,
) -> int:
    """Train as one rank of a launched world and return its exit code. Collective over all ranks.

    Args:
        config: the same on every rank.
        world: the world of the ranks.
        store: the store in which they have met; None: they meet here.
        has_begun: true if a parent has begun the run (`Beginning.by_parent`); otherwise rank 0 does.
        foresight: what this process has predicted of the run already; None: nothing.

    Raises:
        TridentError: the run folder or the device cannot be used; the same one on every rank.
    """
    groups = _join(config, world, store)
    control = groups.control
    hosts = gather(control, socket.gethostname())
    current().enter(CHECKING)
    beginning = Beginning(config, foresight)
    folder = beginning.folder
    # A machine that took the place of a lost one does not know that this is a restart; the others do.
    by = next(filter(None, gather(control, restarted_by(os.environ))), None)
    begins = groups.is_reporting_rank and not has_begun
    together(control, lambda: _claim(beginning, by) if begins else None)
    if config.checkpoint.every > 0 or config.checkpoint.save_final:
        together(control, folder.check_shared, is_of_machine=True)
    together(control, lambda: use_terminal(*send_output_to(folder.log(groups.rank))))
    memory = MemoryWatch(groups, explain)
    guard = RankGuard(folder.logs, groups.rank, account=memory.of_killed)
    together(control, guard.enter)
    interruption.before_end(guard.interrupted)
    try:
        with _watchdog(config.runtime, folder, groups):
            current().enter(PREPARING)
            node = Share(*node_of(world, os.environ))
            prepared = together(control, lambda: prepare(config, say, node), is_of_machine=True)
            _check_same_data(prepared, control, hosts)
            plan = together(control, lambda: _plan(config, prepared, world))
            together(control, lambda: _write(beginning, plan, prepared) if begins else None)
            session = Session(plan=plan, groups=groups, hosts=hosts, progress=current())
            _announce(session)
            memory.begin(plan)
            end = _train(session, prepared, folder, memory)
    except BaseException as error:
        if isinstance(error, Exception):
            # A launcher that loses a rank asks the others to end, at the very moment at which they notice the loss.
            interruption.settle(error.exit_code if isinstance(error, TridentError) else TridentError.exit_code)
        return guard.fail(memory.in_our_words(error))
    code = Preempted.exit_code if end.status == "stopped" else 0
    interruption.settle(code)
    if end.status == "stopped":
        _tell_stop(end.step, folder.goes_on_from())
    guard.leave()
    stop_world()
    return code


def _join(config: TridentConfig, world: World, store: Store | None) -> ParallelGroups:
    """Return the groups of this rank, whose device computes in the run's format. Collective over all ranks."""
    current().enter(JOINING)
    device = choose_device(config.runtime.device, world.local_rank)
    groups = start_world(make_mesh(config, world.size), config.runtime, device, store)
    together(groups.control, lambda: check_precision(config.precision.dtype), is_of_machine=True)
    return groups


def _plan(config: TridentConfig, prepared: PreparedData, world: World) -> RunPlan:
    return make_plan(with_steps(config, prepared), prepared.vocab_size, world.size, prepared.attended)


def _claim(beginning: Beginning, restarted_by: str | None) -> None:
    beginning.check()
    beginning.claim(restarted_by)


def _write(beginning: Beginning, plan: RunPlan, prepared: PreparedData) -> None:
    beginning.check_data(prepared)
    beginning.check_size(plan, prepared)
    beginning.write(plan, prepared)


def _tell_stop(step: int, goes_on_from: int) -> None:
    if step == goes_on_from:
        say(f"stopped after step {step} as asked; the same command goes on from there")
    else:
        where = f"goes on from step {goes_on_from}" if goes_on_from else "begins at step 1"
        say(f"stopped after step {step} as asked, which is not saved; the same command {where}")


def _check_same_data(prepared: PreparedData, control: Group, hosts: Sequence[str]) -> None:
    """Check that every rank has the same tokens, of the same vocabulary. Collective over `control`."""
    kinds = gather(control, ((prepared.content, prepared.boundaries), prepared.vocab_size))
    if kinds.count(kinds[0]) == control.size:
        return
    rank = next(rank for rank, kind in enumerate(kinds) if kind != kinds[0])
    if kinds[rank][0] != kinds[0][0]:
        found = f"what rank {rank} ({hosts[rank]}) has is not what rank 0 ({hosts[0]}) has"
    else:
        found = f"the tokenizer of rank {rank} ({hosts[rank]}) has {kinds[rank][1]} ids, that of rank 0 {kinds[0][1]}"
    raise DataError(
        f"every node must train on the same tokens, but {found}",
        hints=[
            "give every node the same data and tokenizer: data.files, data.hub_path and tokenizer.path may differ, but "
            "not what is there",
            "or put data.cache_dir on a file system that all nodes share",
        ],
    )


def _announce(session: Session) -> None:
    """Print the facts of the run that only a rank knows."""
    plan, groups = session.plan, session.groups
    if not groups.is_reporting_rank:
        return
    kernel = attention_kernel(plan.model, plan.execution, plan.tensor_parallel_size, plan.dtype, groups.device)
    products = "; GEMMs by oneDNN" if multiplies_by_onednn(plan, groups.device) else ""
    say(f"kernel  {kernel}{products}")
    warning = placement_warning(plan, session.hosts)
    if warning is not None:
        warn(warning)


def _train(session: Session, prepared: PreparedData, folder: RunFolder, memory: MemoryWatch) -> RunEnd:
    plan, groups, config = session.plan, session.groups, session.plan.config
    control, progress = groups.control, session.progress
    wanted = WantedStream(prepared, config)
    found = checkpoint_to_resume(config, folder.checkpoints, control)
    concluded = gather(control, _concluded_at(found, folder, config))[0]
    if concluded is not None:
        conclude(_nothing_to_do(folder, concluded, config))
        return RunEnd("finished", concluded, 0.0)
    state = together(control, lambda: starting_state(found, plan, wanted.identity, wanted))
    stream = together(control, lambda: _stream(state, plan))
    evaluates = config.train.eval_every > 0
    batches = together(control, lambda: _batches(session, prepared, stream, evaluates))
    if config.runtime.self_test:
        progress.enter(TESTING)
        say(self_test(config, plan.model.vocab_size, groups))
    progress.enter(BUILDING)
    # Weights that a checkpoint overwrites are not drawn.
    engine = build_engine(plan, groups, progress, Reserved(groups.tensor) if found is not None else None)
    memory.engine = engine
    if found is not None:
        progress.enter(LOADING)
        load(found, engine, plan, groups)
        together(control, lambda: _begin(found, folder, config, groups))
    if state.step >= config.train.steps:
        say(_nothing_to_do(folder, state.step, config))
    background = host_group(timedelta(seconds=config.runtime.timeout_s))
    base = _base(config, found, folder, control)
    saver = CheckpointHook(folder.checkpoints, engine, plan, state, groups, background, session.measures, base)
    hooks = _hooks(session, engine, state, saver, folder, memory.meter)

    def go_back() -> TrainState:
        # The checkpoint under way may be the one that the run goes back to.
        saver.settle()
        progress.enter(LOADING)
        return rewind(engine, state, found, plan, folder.checkpoints, groups)

    progress.enter("start")
    return Loop(session, engine, batches, state, hooks, StopRequest(control), go_back).run()


def _stream(state: TrainState, plan: RunPlan) -> StreamPlan:
    """Return the plan of the stream that a run reads from its state on, whose sources are not read too often."""
    stream = StreamPlan.from_list(state.sample_length, state.segments)
    tokens_left = plan.run_tokens - plan.batch_sizes.sequences(state.step) * plan.execution.seq_length
    check_epochs(stream, plan.config, state.position + tokens_left)
    return stream


def _concluded_at(found: Found | None, folder: RunFolder, config: TridentConfig) -> int | None:
    saved = found.manifest.step if found is not None and found.use is Use.own else None
    return folder.concluded_at(config.train.steps, saved)


def _nothing_to_do(folder: RunFolder, step: int, config: TridentConfig) -> str:
    return f"nothing to do: {folder.path} is at step {step} of train.steps={config.train.steps}"


def _base(config: TridentConfig, found: Found | None, folder: RunFolder, control: Group) -> Base | None:
    """Return the model whose weights checkpoints leave out, since adapters alone are trained. Collective."""
    if config.model.lora.rank is None or config.checkpoint.with_base or found is None:
        return None
    if found.use is Use.own and found.manifest.base is None:
        # Its own checkpoints, which held everything so far, are deleted some day.
        begun = together(control, lambda: find_origin(config, folder.path) if control.rank == 0 else None)
        found = gather(control, begun)[0] or found
    return base_of(found, config.checkpoint.init_from, control)


def _begin(found: Found, folder: RunFolder, config: TridentConfig, groups: ParallelGroups) -> None:
    """Write down the run's origin, and remove the rows of an earlier start of which no checkpoint is left."""
    if groups.is_reporting_rank and found.use is not Use.own and not folder.begin_from(found, config):
        forget_rows(folder.path)


def _watchdog(runtime: RuntimeConfig, folder: RunFolder, groups: ParallelGroups) -> Watchdog:
    """Return the watchdog over this rank from here on; the limit of the process alone (`interruption.limit`) ends."""
    follow(MarkedProgress() if runtime.profile else Progress())
    interruption.limit(0)
    timeouts = (hang_timeout_s(runtime), runtime.timeout_s)
    return Watchdog(folder.logs, groups.rank, groups.place.stage, groups.mesh.size, current(), *timeouts)


def _batches(session: Session, prepared: PreparedData, stream: StreamPlan, evaluates: bool) -> Batches:
    plan, place, device = session.plan, session.groups.samples.rank, session.groups.device
    needs = needs_of(plan, session.groups.place.stage)
    training = training_batches(prepared, plan, stream, place, device, needs)
    if not evaluates:
        return Batches(training)
    return Batches(training, validation_batches(prepared, plan, place, device, needs))


def _hooks(
    session: Session,
    engine: Engine,
    state: TrainState,
    saver: CheckpointHook,
    folder: RunFolder,
    memory: MemoryMeter | None,
) -> list[Hook]:
    plan, groups, config = session.plan, session.groups, session.plan.config
    runtime = config.runtime
    about = RunFacts(folder.newest_checkpoint, lambda: lineage(folder.path))
    metrics = build_metrics(plan, folder.path, state, groups, session.hosts, about, memory)
    checks = [
        ReplicaCheck(engine, groups, runtime.check_replicas_every),
        Recheck(engine, plan, groups, runtime.recheck_every),
    ]
    # Checks before the saver: weights that differ are not worth keeping.
    hooks: list[Hook] = [*checks, saver, metrics]
    if config.eval.samples > 0:
        hooks.append(SamplesHook(engine, plan, folder.tokenizer, folder.hugging_face, groups, metrics.show))
    if config.eval.tasks:
        hooks.append(TasksHook(session, engine, folder.tokenizer, folder.hugging_face))
    if config.logging.timeline_step != 0:
        hooks.append(TimelineHook(session, folder.timeline, config.logging.timeline_step))
    if config.logging.report and groups.is_reporting_rank:
        hooks.append(ReportHook(folder.path))
    # Last, so that a step ends before recording starts or stops.
    if isinstance(session.progress, MarkedProgress):
        hooks.append(ProfileHook(config, folder.path, session.progress, groups))
    return hooks
