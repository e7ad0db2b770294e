"""`trident watch`: the live view of any run."""

from __future__ import annotations

from trainer.errors import ConfigError
from trainer.verbs.declare import Option, Positional, Takes, Verb
from trainer.verbs.parse import Words


def run(words: Words) -> int:
    """Show a run."""
    if len(words.rest) != 1:
        raise ConfigError(
            f"usage must be `trident watch RUN [--once]`, but is `trident {' '.join(['watch', *words.rest])}`"
        )
    from trainer.watching.watcher import watch_verb

    return watch_verb(words.rest[0], words.has("--once"))


VERB = Verb(
    name="watch",
    summary="show any run as it trains, also one on another machine",
    run=run,
    positionals=(
        Positional("RUN", "the folder of a run, or HOST:PATH of one on a machine that ssh reaches", Takes.run),
    ),
    options=(Option("--once", "show it as it is now, and end; in a pipe or a file this is always so"),),
    text=(
        "Draws step, loss, speed, memory, evaluation, events and state from the files of the run until it is over. "
        "Nothing is written, and the run notices nothing: it may be another user's, or have ended long ago. Ctrl-C "
        "ends the view.",
        "On another machine only a shell is needed, and Trident need not be there.",
    ),
    examples=("trident watch runs/mine", "trident watch node3:/data/runs/mine", "trident watch runs/mine --once"),
)
