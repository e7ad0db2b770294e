"""`trident reshard`: a checkpoint for another layout."""

from __future__ import annotations

from trainer.verbs.composing import COMPOSING
from trainer.verbs.declare import Positional, Takes, Verb
from trainer.verbs.parse import Words


def run(words: Words) -> int:
    """Write the checkpoint anew."""
    from trainer.resharding import reshard_verb

    return reshard_verb(words.rest)


VERB = Verb(
    name="reshard",
    summary="write a checkpoint anew as the ranks of another layout would have",
    run=run,
    positionals=(
        Positional("SRC", "a checkpoint, or a run folder: its newest whole checkpoint", Takes.run),
        Positional("DST", "the folder of a run that goes on from it; must not hold a run yet", Takes.folder),
    ),
    options=COMPOSING,
    takes_settings=True,
    text=(
        "Writes DST/checkpoints/step_<N> with config.yaml and tokenizer beside it, so that `trident generate "
        "checkpoint=DST` works, and training goes on with run_dir=DST. Keys that are not given stay as SRC has them; "
        "a group (layout=tp2_pp2) sets all of its keys. Only layout.*, zero.* and batch.micro_batch_size can change. "
        "Weights and moments stay the same bit for bit.",
        "A checkpoint can be resumed in any layout without this. It saves the ranks of a large run from reading more "
        "than they need, and gathers a checkpoint into one file (layout=single).",
    ),
    examples=(
        "trident reshard runs/mine runs/mine_tp2_pp2 layout=tp2_pp2",
        "trident reshard runs/mine/checkpoints/step_3000 runs/more layout.tensor_parallel_size=4 "
        "layout.data_parallel_size=2",
    ),
)
