"""`trident train`: one run, or several in turn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from trainer.errors import ConfigError
from trainer.log import be_quiet, report_failure, say
from trainer.verbs.composing import COMPOSING
from trainer.verbs.declare import Option, Verb
from trainer.verbs.parse import Words
from trainer.verbs.showing import SHOWING, show, shows


def run(words: Words) -> int:
    """Train and return the exit code."""
    if words.has("--multirun"):
        from trainer.sweeps.command import multirun

        return multirun(words.rest, is_dry=words.has("--dry-run"), fail_fast=words.has("--fail-fast"))
    from trainer.sweeps.settings import without_multirun

    without_multirun(words.rest)
    if shows(words):
        return show(words)
    return _train(words.rest, is_dry=words.has("--dry-run"))


def _train(arguments: Sequence[str], is_dry: bool) -> int:
    from trainer.config.compose import composition
    from trainer.config.plan import make_mesh
    from trainer.config.schema import ConsoleKind, DeviceKind
    from trainer.config.validate import fill_machine
    from trainer.launcher.environment import World, find_world, gpu_count, prepare_environment, publish_world
    from trainer.machine import usable_cores
    from trainer.verbs.rank import compute, limit_standstill, train_as_rank

    try:
        world = find_world(os.environ)
    except ConfigError as error:
        # Nobody knows here which rank is rank 0.
        report_failure(error)
        return error.exit_code
    if world is not None:
        publish_world(world)
        return train_as_rank(arguments, world, is_dry)
    composed = composition(arguments)
    config = composed.config
    limit_standstill(config)
    be_quiet(config.logging.console is ConsoleKind.quiet)
    gpus = gpu_count(os.environ)
    from trainer.settling import settle

    settled = settle(replace(composed, config=fill_machine(config, gpus, usable_cores())), None, gpus)
    config, foresight = settled.config, settled.foresight
    for line in composed.told():
        say(f"config  {line}")
    if is_dry:
        from trainer.dry_run import dry_run

        return dry_run(config, None, list(arguments), foresight)
    prepare_environment(on_cpu=config.runtime.device is DeviceKind.cpu or gpus == 0)
    from trainer.beginning import Beginning
    from trainer.supervise import start_and_watch

    # A run that is to be started again needs a parent that outlives it.
    if make_mesh(config).size > 1 or config.launch.max_restarts > 0:
        return start_and_watch(config, foresight)
    beginning = Beginning(config, foresight)
    beginning.by_parent()
    world = World(rank=0, local_rank=0, size=1, local_size=1)
    publish_world(world)
    return compute(config, world, has_begun=True)


def _groups(wide: int) -> str:
    from trainer.config.compose import options
    from trainer.verbs.usage import rows

    return "\n".join(
        ["groups and their files", *rows(((group, " ".join(names)) for group, names in options().items()), wide)]
    )


VERB = Verb(
    name="train",
    summary="train a model on ranks that it starts, or that a launcher did",
    run=run,
    options=(
        Option(
            "--multirun",
            "train once for each combination of values, as in optimizer.lr=1e-3,3e-4 layout=single,dp2: one run after "
            "the other, each in its own folder, and a table at the end",
            aliases=("-m",),
        ),
        Option("--fail-fast", "with --multirun: stop when a run fails", needs="--multirun"),
        Option(
            "--dry-run",
            "check everything that can be known, print the plan and the command that would be started, and write and "
            "start nothing; with --multirun: check every run and print its command",
        ),
        # It is a setting like any other, so that ranks get it and config.yaml shows it.
        Option(
            "--quiet",
            "print errors and the last line only (= logging.console=quiet)",
            setting="logging.console=quiet",
        ),
        *COMPOSING,
        *SHOWING,
    ),
    takes_settings=True,
    text=(
        "Keys are those of the config, for example layout.tensor_parallel_size=2 or optimizer.lr=1e-3. Under "
        "`torchrun`, `srun`, or `deepspeed --no_local_rank --module trainer train ...` the process joins the ranks "
        "that were started.",
    ),
    examples=(
        "trident train",
        "trident train model=gpt2_124m layout=tp2_pp2 precision=bf16 batch.global_batch_size=64",
        "trident train data.source=files 'data.files=[corpus/*.txt]' train.steps=1000 run_dir=runs/mine",
    ),
    more=_groups,
)
