"""`trident data`: the shards of a run, made before it starts."""

from __future__ import annotations

import os

from trainer.log import say
from trainer.verbs.composing import COMPOSING
from trainer.verbs.declare import Verb
from trainer.verbs.parse import Words


def run(words: Words) -> int:
    """Prepare the data of a config and print their folder."""
    from trainer.config.compose import compose
    from trainer.config.validate import validate
    from trainer.data.build.schedule import ALONE, Share
    from trainer.data.prepare import prepare
    from trainer.data.prepared import sources_of
    from trainer.data.told import told_examples, told_left_out
    from trainer.launcher.environment import find_world, node_of

    config = compose(words.rest)
    validate(config, None)
    # The same command on several machines at once, for example with srun: each does its share.
    world = find_world(os.environ)
    prepared = prepare(config, say, ALONE if world is None else Share(*node_of(world, os.environ)))
    for told in (told_left_out(prepared), told_examples(prepared, config)):
        if told is not None:
            say(told)
    for source in sources_of(prepared, config):
        found = source.prepared
        say(
            f"{f'{source.name}: ' if prepared.sources else ''}{found.train_tokens:,} tokens to train on and "
            f"{found.validation_tokens:,} to validate with, vocabulary {found.vocab_size:,}, in {found.folder}"
        )
    return 0


VERB = Verb(
    name="data",
    summary="tokenise the data into memory-mapped shards, without training",
    run=run,
    options=COMPOSING,
    takes_settings=True,
    text=(
        "Takes the groups and keys of `trident train` and prints the folder of the shards. The keys data.*, "
        "tokenizer.* and model.vocab_size decide their content, and model.seq_length that of chats and prompts; a run "
        "with the same values finds the shards and does not read the text again.",
        "Below it: `trident data inspect` looks at tokens or texts, `trident data audit` proves which samples a run "
        "saw, and `trident data write` writes the tokens as files that other trainers read; each has a --help.",
    ),
    examples=(
        "trident data data=files 'data.files=[corpus/*.txt]'",
        "trident data data=hub data.hub_path=roneneldan/TinyStories tokenizer=pretrained tokenizer.path=gpt2",
    ),
)
