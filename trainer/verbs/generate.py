"""`trident generate`: text from a checkpoint."""

from __future__ import annotations

from dataclasses import fields

from trainer.config.meanings import meanings
from trainer.generation import options
from trainer.generation.options import GenerateOptions
from trainer.log import say
from trainer.verbs.declare import Key, Takes, Verb
from trainer.verbs.parse import Words


def run(words: Words) -> int:
    """Draw texts and print them."""
    wanted = options.parse(words.rest)
    from trainer.generation.generate import generate_text

    for text in generate_text(wanted):
        say(text)
    return 0


def _keys() -> tuple[Key, ...]:
    told = meanings([options])
    kinds = {int: Takes.number, float: Takes.number, str: Takes.text}
    return tuple(
        Key(
            field.name,
            told[f"GenerateOptions.{field.name}"].removesuffix("."),
            Takes.run if field.name == "checkpoint" else kinds[type(field.default)],
            "" if field.name == "checkpoint" else repr(field.default),
        )
        for field in fields(GenerateOptions)
    )


VERB = Verb(
    name="generate",
    summary="sample text from a run or a checkpoint",
    run=run,
    keys=_keys(),
    text=("One process samples, whatever layout the checkpoint was trained in.",),
    examples=("trident generate checkpoint=runs/demo prompt='def read(' max_tokens=64 temperature=0.7",),
)
