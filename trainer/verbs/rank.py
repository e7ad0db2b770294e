"""Training as one rank, alone or among those that a launcher started. Torch is imported where ranks meet."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn, TypeVar

from trainer import interruption
from trainer.config.compose import Composition, composition
from trainer.config.schema import ConsoleKind, DeviceKind, TridentConfig
from trainer.config.validate import validate
from trainer.errors import ConfigError, PeerLostError, Preempted, TridentError
from trainer.garbage import look_as_usual
from trainer.launcher.environment import World, gpu_count, prepare_environment
from trainer.launcher.start import SUPERVISED_VARIABLE
from trainer.log import be_quiet, report_error, report_failure, say
from trainer.progress import IMPORTING, current

if TYPE_CHECKING:
    from trainer.planner.foresee import Foresight
    from trainer.preflight import MeetingPlace

T = TypeVar("T")


def train_as_rank(arguments: Sequence[str], world: World, is_dry: bool = False) -> int:
    """Train as one of the ranks that a launcher started. Nothing heavy begins before all of them agree.

    Args:
        arguments: words of the command line.
        world: the world of the ranks.
        is_dry: only check and show what would be trained.
    """
    hear_of_launcher()
    try:
        found, foresight = _checked(arguments, world)
    except TridentError as error:
        # Before torch is imported, because torch is needed to tell the others.
        report_error(error)
        if world.size > 1 and not is_dry:
            decline_for(error, world)
        return error.exit_code
    limit_standstill(found.config)
    be_quiet(found.config.logging.console is ConsoleKind.quiet)
    for line in found.told():
        say(f"config  {line}")
    if is_dry:
        from trainer.dry_run import dry_run

        return dry_run(found.config, world, list(arguments), foresight)
    current().enter(IMPORTING)
    from trainer.preflight import join

    config, store = met(lambda: join(found, world), world)
    limit_standstill(config)
    return compute(config, world, store, SUPERVISED_VARIABLE in os.environ, foresight)


def met(meeting: Callable[[], T], world: World) -> T:
    """Return what the ranks of a world agree on when they meet; if they do not, say why, and leave at once."""
    from trainer.topology.muster import LonelyError

    try:
        return meeting()
    except LonelyError as error:
        report_failure(error)
        leave_now(error.exit_code)
    except PeerLostError as error:
        # The ranks have not met, so one of each machine speaks.
        if world.local_rank == 0:
            report_failure(error)
        leave_now(error.exit_code)
    except TridentError as error:
        report_error(error)
        leave_now(error.exit_code)


def hear_of_launcher() -> None:
    """Let this rank end when the launcher that started it does."""
    from trainer.launcher.orphan import ask_to_stop, watch_launcher

    watch_launcher(ask_to_stop)
    if SUPERVISED_VARIABLE in os.environ:
        interruption.let_parent_tell()


def limit_standstill(config: TridentConfig) -> None:
    """Let the process stand still no longer than the config allows."""
    # 0: the user wants no watchdog.
    interruption.limit(config.runtime.timeout_s if config.runtime.hang_timeout_s != 0 else 0)


def _checked(arguments: Sequence[str], world: World) -> tuple[Composition, Foresight | None]:
    found = composition(arguments)
    config = found.config
    if config.launch.max_restarts > 0 and SUPERVISED_VARIABLE not in os.environ:
        raise ConfigError(
            f"launch.max_restarts={config.launch.max_restarts} has no effect under a launcher; use its own restarts "
            "(--max-restarts of torchrun and of the scripts in launch/), or let `trident train` start the ranks"
        )
    gpus = gpu_count(os.environ)
    if SUPERVISED_VARIABLE in os.environ:
        # The parent has planned the run.
        validate(config, world.size, gpus)
        foresight = None
    else:
        from trainer.settling import settle

        settled = settle(found, world.size, gpus)
        config = settled.config
        foresight = settled.foresight
    prepare_environment(on_cpu=config.runtime.device is DeviceKind.cpu or gpus == 0)
    return replace(found, config=config), foresight


def decline_for(error: TridentError, world: World) -> None:
    """Tell the other ranks why this one does not come."""
    from trainer.preflight import decline
    from trainer.topology.muster import LonelyError

    try:
        decline(error)
    except LonelyError as lonely:
        if world.rank != 0:
            report_failure(lonely)
    except TridentError:
        # Rank 0 reports it for whichever rank it concerns.
        return


def compute(
    config: TridentConfig,
    world: World,
    store: MeetingPlace | None = None,
    has_begun: bool = False,
    foresight: Foresight | None = None,
) -> int:
    """Train as a rank whose config is settled, and return the exit code.

    Args:
        config: the same on every rank.
        world: the world of the ranks.
        store: the store over which they met.
        has_begun: true if the parent of the ranks has begun the run, so that they need not.
        foresight: what this process has predicted of the run already; None: nothing.
    """
    current().enter(IMPORTING)
    from trainer.app import train_rank

    look_as_usual()
    try:
        code = train_rank(config, world, store, has_begun, foresight)
    except PeerLostError as error:
        # The ranks have not met, so one of each machine speaks.
        if world.local_rank == 0:
            report_failure(error)
        code = error.exit_code
    except TridentError as error:
        report_error(error)
        code = error.exit_code
    if code not in (0, Preempted.exit_code):
        # Peers may hang in a collective; communication libraries must not wait for them at exit.
        leave_now(code)
    return code


def leave_now(code: int) -> NoReturn:
    """End this process without waiting for others: peers may hang in a collective."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
