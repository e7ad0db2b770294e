"""The command line: verbs, and what a fault looks like to a person. Imports torch only where ranks compute."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from trainer import __version__
from trainer.errors import ConfigError, Preempted, TridentError
from trainer.log import be_quiet, report_error, say

_USAGE = """usage: trident VERB [key=value ...]

verbs
  train      train a model; starts the ranks that the layout needs, or joins those of a launcher around it
  data       tokenise the data into memory-mapped shards, without training
  generate   sample text from a run or a checkpoint
  checkpoint list, show or verify checkpoints
  balance    time the layers on this machine, and cut a pipeline into stages by that
  reshard    write a checkpoint anew as the ranks of another layout would have

options
  --help     this text, or `trident VERB --help`
  --version  the version
"""

_TRAIN_USAGE = """usage: trident train [--multirun [--fail-fast] [--dry-run]] [group=option ...] [key=value ...]

Keys are those of the config, for example layout.tensor_parallel_size=2 or optimizer.lr=1e-3. Under `torchrun`, `srun`,
or `deepspeed --no_local_rank --module trainer train ...` the process joins the ranks that were started.

options
  --multirun, -m  train once for each combination of values, as in optimizer.lr=1e-3,3e-4 layout=single,dp2: one run
                  after the other, each in its own folder, and a table at the end
  --fail-fast     with --multirun: stop when a run fails
  --dry-run       with --multirun: check every run, print its command, and start none

examples
  trident train
  trident train model=gpt2_124m layout=tp2_pp2 precision=bf16 batch.global_batch_size=64
  trident train data.source=files 'data.files=[corpus/*.txt]' train.steps=1000 run_dir=runs/mine

options
  --quiet    print errors and the last line only (= logging.console=quiet)

groups and their options
{groups}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if any(word.startswith("--local") for word in arguments):
        from trainer.config.compose import without_local_rank

        arguments = without_local_rank(arguments)
    try:
        return _dispatch(arguments)
    except TridentError as error:
        report_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _dispatch(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        say(_USAGE)
        return 0
    if arguments[0] == "--version":
        say(__version__)
        return 0
    verb, rest = arguments[0], list(arguments[1:])
    if verb not in _VERBS:
        import difflib

        close = difflib.get_close_matches(verb, _VERBS, n=1)
        raise ConfigError(
            f"the verb must be one of {', '.join(_VERBS)}, but is {verb!r}",
            hints=[f"did you mean `trident {close[0]}`?"] if close else ["see `trident --help`"],
        )
    action, usage = _VERBS[verb]
    if any(a in ("--help", "-h") for a in rest):
        say(usage())
        return 0
    return action(rest)


def _train_usage() -> str:
    from trainer.config.compose import options

    lines = (f"  {group:<12} {' '.join(names)}" for group, names in options().items())
    return _TRAIN_USAGE.format(groups="\n".join(lines))


def _data_usage() -> str:
    return "usage: trident data [key=value ...]\n\nTakes the keys of `trident train`, and prints where the shards are."


def _generate_usage() -> str:
    from trainer.generation.options import usage

    return usage()


def _train(arguments: list[str]) -> int:
    if any(word in ("--multirun", "-m", "--dry-run", "--fail-fast") for word in arguments):
        from trainer.sweep import multirun

        return multirun(arguments)
    from trainer.config.compose import compose
    from trainer.config.schema import ConsoleKind, DeviceKind
    from trainer.config.validate import fill_machine, validate
    from trainer.launcher.environment import World, find_world, gpu_count, prepare_environment, publish_world
    from trainer.launcher.start import SUPERVISED_VARIABLE

    # A setting like any other, so that ranks get it and config.yaml shows it.
    arguments = ["logging.console=quiet" if word == "--quiet" else word for word in arguments]
    world = find_world(os.environ)
    if world is not None:
        publish_world(world)
    config = compose(arguments)
    be_quiet(config.logging.console is ConsoleKind.quiet)
    if world is not None and config.launch.max_restarts > 0 and SUPERVISED_VARIABLE not in os.environ:
        raise ConfigError(
            f"launch.max_restarts={config.launch.max_restarts} has no effect under a launcher; use its own restarts "
            "(--max-restarts of torchrun and of the scripts in launch/), or let `trident train` start the ranks"
        )
    gpus = gpu_count(os.environ)
    if world is None:
        config = fill_machine(config, gpus, len(os.sched_getaffinity(0)))
    validate(config, world.size if world else None, gpus)
    prepare_environment(on_cpu=config.runtime.device is DeviceKind.cpu or gpus == 0)
    if world is None:
        from trainer.config.plan import make_plan
        from trainer.supervise import check_before_start, start_and_watch

        # A run that is to be started again needs a parent that outlives it.
        if make_plan(config, vocab_size=1).world_size > 1 or config.launch.max_restarts > 0:
            return start_and_watch(config, arguments)
        check_before_start(config)
        world = World(rank=0, local_rank=0, size=1)
        publish_world(world)
    from trainer.app import train_rank

    try:
        code = train_rank(config, world)
    except TridentError as error:
        report_error(error)
        code = error.exit_code
    if code not in (0, Preempted.exit_code):
        # Peers may hang in a collective; communication libraries must not wait for them at exit.
        _leave_now(code)
    return code


def _leave_now(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _data(arguments: list[str]) -> int:
    from trainer.config.compose import compose
    from trainer.config.validate import validate
    from trainer.data.prepare import prepare

    config = compose(arguments)
    validate(config, None)
    prepared = prepare(config, say)
    say(
        f"{prepared.train_tokens:,} tokens to train on and {prepared.validation_tokens:,} to validate with, "
        f"vocabulary {prepared.vocab_size:,}, in {prepared.folder}"
    )
    return 0


def _generate(arguments: list[str]) -> int:
    from trainer.generation.options import parse

    options = parse(arguments)
    from trainer.generation.generate import generate_text

    for text in generate_text(options):
        say(text)
    return 0


def _checkpoint(arguments: list[str]) -> int:
    from trainer.checkpoint.inspect import checkpoint_verb

    return checkpoint_verb(arguments)


def _checkpoint_usage() -> str:
    from trainer.checkpoint.inspect import USAGE

    return USAGE


def _reshard(arguments: list[str]) -> int:
    from trainer.resharding import reshard_verb

    return reshard_verb(arguments)


def _reshard_usage() -> str:
    from trainer.resharding import USAGE

    return USAGE


def _balance(arguments: list[str]) -> int:
    from trainer.balance import balance_verb

    return balance_verb(arguments)


def _balance_usage() -> str:
    from trainer.balance import USAGE

    return USAGE


_VERBS: dict[str, tuple[Callable[[list[str]], int], Callable[[], str]]] = {
    "train": (_train, _train_usage),
    "data": (_data, _data_usage),
    "generate": (_generate, _generate_usage),
    "checkpoint": (_checkpoint, _checkpoint_usage),
    "balance": (_balance, _balance_usage),
    "reshard": (_reshard, _reshard_usage),
}
