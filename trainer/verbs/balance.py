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
    summary="partition a pipeline by measured times of its layers",
    run=run,
    options=COMPOSING,
    takes_settings=True,
    text=(
        "Takes the groups and keys of `trident train`, with layout.pipeline_parallel_size > 1. Times one rank's share "
        "of each kind of layer, forward and backward, on this machine (one process, one device), and prints the time "
        "of each stage as configured and as balanced, with the layout.stage_boundaries to put into the config. The "
        "machine should do nothing else. Communication between tensor-parallel ranks is not measured.",
    ),
    examples=(
        "trident balance layout=pp4 model=gpt2_124m",
        "trident balance experiment=gpt3_1_3b_8gpu runtime.device=cuda",
    ),
)
