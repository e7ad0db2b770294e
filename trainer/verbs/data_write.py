"""`trident data write`: prepared tokens in the form of another trainer."""

from __future__ import annotations

from trainer.log import say
from trainer.verbs.composing import COMPOSING
from trainer.verbs.declare import Option, Positional, Takes, Verb
from trainer.verbs.parse import Words


def run(words: Words) -> int:
    """Prepare the data of a config where needed, and write them."""
    from trainer.config.compose import compose
    from trainer.config.places import absolute_path
    from trainer.config.validate import validate
    from trainer.data.prepare import prepare
    from trainer.data.written_pairs import KEY, write_pairs
    from trainer.errors import ConfigError

    if not words.rest or "=" in words.rest[0]:
        found = f"the first is {words.rest[0]!r}" if words.rest else "there is none"
        raise ConfigError(f"{KEY} must be the first word, but {found}; for example /data/mine")
    if words.value("--to") is None:
        raise ConfigError("--to must say the form, but is missing; use --to megatron")
    config = compose(words.rest[1:])
    validate(config, None)
    for pair in write_pairs(prepare(config, say), config, absolute_path(words.rest[0], KEY)):
        say(f"{pair.tokens:,} tokens of {pair.documents:,} documents, {pair.dtype}, in {pair.prefix}.bin and .idx")
    return 0


VERB = Verb(
    name="data write",
    summary="write the data's tokens as files that other trainers read",
    run=run,
    positionals=(Positional("PREFIX", "path of the files without _train.bin and .idx", Takes.file),),
    options=(
        Option("--to", "form of the files; it must be given", takes=Takes.choice, choices=("megatron",)),
        *COMPOSING,
    ),
    takes_settings=True,
    text=(
        "Takes the groups and keys of `trident train`, as `trident data` does, and writes each part of the data that "
        "has tokens as one Megatron pair: PREFIX_train, PREFIX_validation and PREFIX_test, each .bin and .idx; of a "
        "blend PREFIX_NAME_train and so on for each source. Megatron-LM and GPT-NeoX read them "
        "(--data-path PREFIX_train), and so does data=megatron.",
    ),
    examples=(
        "trident data write --to megatron /data/mine data=files 'data.files=[corpus/*.txt]'",
        "trident data write --to megatron /data/pile data=tokens 'data.files=[pile/*.npy]' model.vocab_size=50280",
    ),
)
