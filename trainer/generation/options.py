"""Options of `trident generate`, parsed as key=value like every other verb. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from trainer.config.nearness import nearest
from trainer.errors import ConfigError
from trainer.generation.other_option_names import OTHER_NAMES


@dataclass
class GenerateOptions:
    """The checkpoint to sample from, and how."""

    checkpoint: str = ""
    """A run folder (its newest checkpoint) or a checkpoint folder."""
    prompt: str = ""
    """Text that the model continues."""
    max_tokens: int = 0
    """Largest number of tokens to add. 0: as many as the model's sequence length leaves room for."""
    temperature: float = 0.8
    """Divides the logits before a token is drawn. 0: always the likeliest token (greedy)."""
    top_k: int = 0
    """Sample among this many likeliest tokens. 0: all."""
    top_p: float = 1.0
    """Sample among the fewest likeliest tokens that together have this probability."""
    seed: int = 0
    """Seed of the draws."""
    num_samples: int = 1
    """Number of texts."""
    tokenizer: str = ""
    """Folder, tokenizer.json or Hugging Face name of another tokenizer than the checkpoint's own."""


def parse(arguments: Sequence[str]) -> GenerateOptions:
    """Return the options.

    Raises:
        ConfigError: names every unknown key, wrong type and value out of range.
    """
    names = [field.name for field in fields(GenerateOptions)]
    values: dict[str, str] = {}
    problems: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        key, equals, value = word.partition("=")
        if key.startswith("--") and len(key) > 2:
            # `--top-k=40` and `--top-k 40`, as other programs take them.
            key = key.removeprefix("--").replace("-", "_")
            if not equals and words and words[0].partition("=")[0] not in names and not words[0].startswith("--"):
                equals, value = "=", words.pop(0)
        if key in names and equals:
            values[key] = value
        elif equals or word.startswith("--"):
            problems.append(_unknown(key, value, names))
        else:
            problems.append(f"an option must be key=value, but is {word!r}")
    options = GenerateOptions()
    for key, text in values.items():
        kind = type(getattr(options, key))
        try:
            setattr(options, key, kind(text))
        except ValueError:
            problems.append(f"{key} must be of type {kind.__name__}, but is {text!r}")
    problems += _range_problems(options)
    if problems:
        raise ConfigError(problems, hints=["see `trident generate --help`"])
    return options


def _unknown(key: str, value: str, names: Sequence[str]) -> str:
    plain = key.lower().replace("-", "_")
    if plain in names:
        wanted = f"did you mean {plain}={value}?" if value else f"it must be followed by its value, as in {plain}=..."
    elif plain in OTHER_NAMES:
        wanted = OTHER_NAMES[plain].told(value)
    else:
        close = nearest(plain, names)
        wanted = f"did you mean {close}?" if close else f"use one of {', '.join(names)}"
    return f"there is no option {key!r}; {wanted}"


def _range_problems(options: GenerateOptions) -> list[str]:
    rules = (
        (bool(options.checkpoint), "checkpoint must name a run folder or a checkpoint, but is empty"),
        (options.max_tokens >= 0, f"max_tokens must be at least 0, but is {options.max_tokens}"),
        (options.num_samples >= 1, f"num_samples must be at least 1, but is {options.num_samples}"),
        (
            0 <= options.temperature < math.inf,
            f"temperature must be a number of at least 0, but is {options.temperature}",
        ),
        (options.top_k >= 0, f"top_k must be at least 0, but is {options.top_k}"),
        (0 < options.top_p <= 1, f"top_p must be above 0 and at most 1, but is {options.top_p}"),
        (0 <= options.seed < 2**63, f"seed must be in 0 to 2^63 - 1, but is {options.seed}"),
    )
    return [text for holds, text in rules if not holds]
