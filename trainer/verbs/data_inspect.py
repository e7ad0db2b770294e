"""`trident data inspect`: a look at tokens or texts before a run reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from trainer.errors import ConfigError
from trainer.log import say, tell, terminal
from trainer.verbs.composing import COMPOSING
from trainer.verbs.declare import Option, Positional, Takes, Verb
from trainer.verbs.parse import Words

ALL, DOCUMENTS, SEED, JSON, PICTURE = "--all", "--documents", "--seed", "--json", "--picture"
_SHOWN = 3
_READ = (
    *("data.text_key=", "data.text_join=", "data.document_separator=", "data.token_dtype=", "data.eos_id="),
    *("tokenizer=", "tokenizer.kind=", "tokenizer.path=", "tokenizer.eos_token="),
)
"""Keys and groups that have an effect."""


def run(words: Words) -> int:
    """Look at a path and print what was found."""
    from trainer.config.compose import compose
    from trainer.config.places import absolute_path
    from trainer.inspection.find import find
    from trainer.inspection.inspected import inspect
    from trainer.inspection.shown import lines
    from trainer.metrics.screen import speaks_unicode
    from trainer.picture_file import check_picture

    path, settings = _sorted(words.rest)
    shown, seed = _number(words, DOCUMENTS, _SHOWN), _number(words, SEED, 0)
    picture = words.value(PICTURE)
    drawn = None if picture is None else absolute_path(picture, PICTURE)
    if drawn is not None:
        check_picture(drawn)
    found = find(path, compose(settings))
    report = inspect(found, shown, words.has(ALL), seed)
    if words.has(JSON):
        tell(json.dumps(report.to_dict(), indent=1))
    else:
        for line in lines(report, found.tokenizer, speaks_unicode(terminal(), os.environ)):
            say(line)
    if drawn is not None:
        from trainer.inspection.drawing import write_picture

        write_picture(report, drawn)
    return 0


def _sorted(words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the path and the settings.

    Raises:
        ConfigError: there is no path, or a setting has no effect here.
    """
    if not words or words[0].startswith("-"):
        raise ConfigError("usage must be `trident data inspect PATH`, but there is no path")
    settings = list(words[1:])
    idle = [word for word in settings if not word.startswith(("-", *_READ))]
    if idle:
        raise ConfigError(
            f"'{idle[0]}' has no effect on what is looked at; leave it out, or name one path (data.text_key, "
            "data.text_join, data.document_separator and tokenizer.* have an effect)"
        )
    return words[0], settings


def _number(words: Words, option: str, default: int) -> int:
    text = words.value(option)
    if text is None:
        return default
    # Python reads no number of thousands of digits.
    if not text.isdecimal() or len(text) > 18:
        raise ConfigError(f"{option} must be a whole number of at least 0, but is '{text[:40]}'")
    return int(text)


VERB = Verb(
    name="data inspect",
    summary="look at tokens or texts: counts, lengths, samples, ids, duplicates",
    run=run,
    positionals=(
        Positional(
            "PATH",
            "a folder of prepared tokens, the prefix of a Megatron pair, a run folder, or files of texts",
            Takes.file,
        ),
    ),
    options=(
        Option(DOCUMENTS, "number of documents to show (default 3)", takes=Takes.number, metavar="N"),
        Option(SEED, "seed of the sample (default 0)", takes=Takes.number, metavar="S"),
        Option(ALL, "look at everything; without it, a large path answers from a random sample and says so"),
        Option(JSON, "print one JSON object with every number"),
        Option(
            PICTURE,
            "draw lengths, tokens a byte and shares into a file, .svg or .png",
            takes=Takes.file,
            metavar="FILE",
        ),
        *COMPOSING,
    ),
    takes_settings=True,
    text=(
        "Reads a bounded sample, so that a huge path answers in seconds, and changes nothing. The tokenizer is the one "
        "that lies with the tokens; for a pair, or for texts, tokenizer=pretrained tokenizer.path=... names one, and "
        "without it lengths of texts are in bytes and tokens are shown as ids. Texts are a file, a folder or a glob; "
        "data.text_key names the field of their records.",
    ),
    examples=(
        "trident data inspect ~/.cache/trident/0f3a9c1d2b4e5f60718293a4",
        "trident data inspect corpus data.text_key=body tokenizer=pretrained tokenizer.path=gpt2 --picture corpus.svg",
        "trident data inspect runs/mine --documents 10 --seed 1",
    ),
)
