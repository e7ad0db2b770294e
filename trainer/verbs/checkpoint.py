"""`trident checkpoint`: the content of checkpoints."""

from __future__ import annotations

from trainer.verbs.declare import Positional, Takes, Verb
from trainer.verbs.parse import Words


def run(words: Words) -> int:
    """List, show or verify checkpoints."""
    from trainer.checkpoint.inspect import checkpoint_verb

    return checkpoint_verb(words.rest)


VERB = Verb(
    name="checkpoint",
    summary="list, show or verify checkpoints",
    run=run,
    positionals=(
        Positional(
            "ls|show|verify",
            "what to do",
            Takes.choice,
            {
                "ls": "list the checkpoints of a run folder, newest last",
                "show": "print the content of a checkpoint (in a run folder, of the newest whole one)",
                "verify": "read every byte and compare its hash with the saved one; a file that differs is named, with "
                "exit code 1",
            },
        ),
        Positional("PATH", "a run folder, or a checkpoint in one", Takes.run),
    ),
    examples=("trident checkpoint ls runs/mine", "trident checkpoint verify runs/mine/checkpoints/step_3000"),
)
