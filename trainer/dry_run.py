"""The plan of a run before its data are prepared; and `--dry-run`, which prints it and starts nothing. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.beginning import Beginning
from trainer.config.plan import RunPlan, keeps_documents_apart, make_mesh, make_plan
from trainer.config.schema import TokenizerKind, TridentConfig
from trainer.config.words import for_a_shell
from trainer.data.epochs import with_steps
from trainer.data.prepare import look_up
from trainer.data.prepared import PreparedData
from trainer.data.pretrained_tokenizer import load_pretrained, pretrained_file
from trainer.data.streams import new_stream
from trainer.data.tokenizer import ByteTokenizer, wanted_entries
from trainer.data.told import told_sources
from trainer.description import describe
from trainer.errors import ConfigError, DataError
from trainer.launcher.environment import World
from trainer.launcher.start import launch_command
from trainer.log import say
from trainer.planner.foresee import Foresight


def plan_without_data(config: TridentConfig, world_size: int | None = None) -> RunPlan:
    """Return the plan of a validated config. Prepares nothing and asks no network.

    Raises:
        ConfigError: the number of token ids is only known once the tokenizer is fetched.
        DataError: the named data or tokenizer cannot be used.
    """
    vocab_size = vocabulary(config)
    if vocab_size is None:
        raise ConfigError(
            f"the plan needs the number of token ids, but tokenizer.path={config.tokenizer.path} is fetched when the "
            "data are prepared; set model.vocab_size, or run `trident data` with the same words before"
        )
    prepared = _prepared(config)
    if prepared is None:
        return make_plan(config, vocab_size, world_size)
    return make_plan(with_steps(config, prepared), vocab_size, world_size, prepared.attended)


def _prepared(config: TridentConfig) -> PreparedData | None:
    """Return the data if a plan depends on them, or None if it does not, or they are not there, or not yet."""
    if not (keeps_documents_apart(config.data) or config.train.epochs or config.data.blend.sources):
        return None
    try:
        return look_up(config)[1]
    except DataError:
        # A plan needs no data: they may be on another machine.
        return None


def told_length(config: TridentConfig) -> str | None:
    """Return a line about a run whose number of steps is not known, since its data are not prepared here."""
    if config.train.epochs is None or _prepared(config) is not None:
        return None
    return (
        f"steps   train.epochs={config.train.epochs:g} becomes steps when the data are prepared here (trident data): "
        f"until then days, price and loss are those of {config.train.steps} steps"
    )


def told_reads(config: TridentConfig, plan: RunPlan) -> Iterator[str]:
    """Yield lines about how long a run is and how often it reads the sources of a blend, as far as it is known here."""
    if (unknown := told_length(config)) is not None:
        yield unknown
    prepared = _prepared(config)
    if prepared is not None:
        stream = new_stream(prepared, config, config.model.seq_length)
        yield from told_sources(prepared, config, stream, plan.run_tokens)


def dry_run(config: TridentConfig, world: World | None, words: list[str], foresight: Foresight | None) -> int:
    """Check everything that a start would check, and print what would be done. Writes nothing.

    Args:
        config: a validated config.
        world: the world of a launcher around this process.
        words: the words after `trident train`, without --dry-run.
        foresight: what this process has predicted of the run already; None: nothing.

    Raises:
        TridentError: a fault that would end the run before its first step, as far as it can be known.
    """
    beginning = Beginning(config, foresight)
    folder = beginning.folder
    beginning.check()
    cache, prepared = look_up(config)
    if prepared is None:
        vocab_size = vocabulary(config)
        if vocab_size is not None:
            folder.check_weights(config, vocab_size)
        say(f"data    not prepared yet; the tokens would be put into {cache}")
    else:
        beginning.check_data(prepared)
        say(
            f"data    {prepared.train_tokens:,} tokens to train on, {prepared.validation_tokens:,} held out, in {cache}"
        )
    try:
        plan = plan_without_data(config, world.size if world else None)
        say(describe(plan, foresight.of(plan) if foresight else None))
        for line in told_reads(config, plan):
            say(line)
    except ConfigError as error:
        say(f"plan    not shown: {error}")
    step = folder.goes_on_from()
    say(f"run     {folder.path}" + (f", goes on from step {step}" if step else ""))
    say(f"start   {_start(config, world, words)}")
    return 0


def _start(config: TridentConfig, world: World | None, words: list[str]) -> str:
    if world is not None:
        return f"nothing: this process is one of {world.size} ranks that a launcher started"
    ranks = make_mesh(config).size
    if ranks == 1:
        return "one rank, in this process"
    command = launch_command(ranks, config.launch.master_port or 0, ["train", *words])
    text = " ".join(map(for_a_shell, command))
    return text if config.launch.master_port else text.replace("--master_port=0", "--master_port=FREE_PORT")


def vocabulary(config: TridentConfig) -> int | None:
    """Return the number of token ids; for a tokenizer that is yet to be trained, the number that is asked for."""
    if config.model.vocab_size is not None:
        return config.model.vocab_size
    prepared = look_up(config)[1]
    if prepared is not None:
        return prepared.vocab_size
    kind = config.tokenizer.kind
    if kind is TokenizerKind.bytes:
        return ByteTokenizer.vocab_size
    if kind is TokenizerKind.bpe:
        return wanted_entries(config)
    file = pretrained_file(str(config.tokenizer.path))
    return None if file is None else load_pretrained(config.tokenizer).vocab_size
