"""`trident runs`: the runs in a folder."""

from __future__ import annotations

from trainer.errors import ConfigError
from trainer.verbs.declare import Option, Positional, Takes, Verb
from trainer.verbs.parse import Words


def run(words: Words) -> int:
    """List runs."""
    if len(words.rest) > 1:
        raise ConfigError(
            f"usage must be `trident runs [FOLDER] [--json]`, but is `trident {' '.join(['runs', *words.rest])}`"
        )
    from trainer.watching.run_list import runs_verb

    return runs_verb(words.rest[0] if words.rest else None, words.has("--json"))


VERB = Verb(
    name="runs",
    summary="list runs with state, step, loss, layout and age",
    run=run,
    positionals=(
        Positional("FOLDER", "a folder that holds runs, up to three levels below it (default runs)", Takes.folder),
    ),
    options=(Option("--json", "print one JSON list with everything"),),
    text=(
        "The run that changed last comes first. A run that was killed is told from one that trains by its lock and its "
        "ranks, also on a shared file system; nothing is written.",
    ),
    examples=("trident runs", "trident runs /data/team/runs --json"),
)
