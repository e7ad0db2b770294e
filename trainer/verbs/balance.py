"""`trident balance`: stages of a pipeline by measured time."""

from __future__ import annotations

from trainer.verbs.composing import COMPOSING
from trainer.verbs.declare import Verb
from trainer.verbs.parse import Words


def run(words: Words) -> int:
    """Time the layers and print the stages that they suggest."""
    from trainer.balance import balance_verb

    return balance_verb(words.rest)


VERB = Verb(
    name="balance",
    summary="time the layers on this machine, and cut a pipeline into stages by that",
    run=run,
    options=COMPOSING,
    takes_settings=True,
    text=(
        "Takes the groups and keys of `trident train`, with layout.pipeline_parallel_size > 1. Times one rank's share "
        "of each kind of layer, forward and backward, on this machine (one process, one device), and prints how its "
        "time divides over the stages as they are and as they should be: layout.stage_boundaries, to be put into the "
        "config. The machine should do nothing else. What tensor-parallel ranks send each other is not measured.",
    ),
    examples=(
        "trident balance layout=pp4 model=gpt2_124m",
        "trident balance experiment=gpt3_1_3b_8gpu runtime.device=cuda",
    ),
)
