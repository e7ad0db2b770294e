"""Options of `trident generate`, parsed as key=value like every other verb. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.generation.other_option_names import OTHER_NAMES
from trainer.inference.key_words import KeyWords


@dataclass
class GenerateOptions:
    """The checkpoint to sample from, and how."""

    checkpoint: str = ""
    """A run folder (its newest checkpoint), a checkpoint folder, or the folder or hub name of a Hugging Face model. A
    first word that is no key=value means it too."""
    ema: bool = False
    """Use the average of the run's weights (optimizer.ema_decay) instead of the weights."""
    prompt: tuple[str, ...] = ()
    """Text that the model continues; given several times, as many texts. Without any: the beginning of a document."""
    prompts: str = ""
    """File with further prompts: one a line (.txt; empty lines are left out), or JSON objects with "prompt" or
    "messages" (.jsonl)."""
    chat: bool = False
    """Put each prompt into the tokenizer's chat template as the words of a user, and print the answer alone."""
    max_tokens: int = 0
    """Largest number of tokens to add. 0: as many as the model's sequence length leaves room for."""
    temperature: float = 0.8
    """Divides the logits before a token is drawn. 0: always the likeliest token (greedy)."""
    top_k: int = 0
    """Sample among this many likeliest tokens. 0: all."""
    top_p: float = 1.0
    """Sample among the fewest likeliest tokens that together have this probability."""
    min_p: float = 0.0
    """Sample among tokens that have at least this share of the likeliest one's probability. 0: all."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens that prompt or text have, and multiplies negative ones. 1: none."""
    stop: tuple[str, ...] = ()
    """String before which a text ends; may be given several times."""
    eos_ids: tuple[int, ...] = ()
    """Ids of the tokens that end a text, with commas. Without any: the tokenizer's end of text, and eos_token_id in the
    generation_config.json beside it."""
    seed: int = 0
    """Seed of the draws; sample N of each prompt has seed + N, so that no text depends on the other prompts."""
    num_samples: int = 1
    """Number of texts for each prompt."""
    batch_size: int = 8
    """Largest number of texts that are written at once. The memory of their keys and values grows with it."""
    tokenizer: str = ""
    """Folder, tokenizer.json or Hugging Face name of another tokenizer than the checkpoint's own."""
    output: str = ""
    """File (.jsonl) that gets an object for each text: prompt, text, number of tokens and the reason of its end."""
    settings: tuple[str, ...] = ()
    """Words of the config that say layout and runtime, as they were given."""


WORDS = KeyWords(
    GenerateOptions,
    groups=("layout", "runtime"),
    other_names=OTHER_NAMES,
    repeated=("prompt", "stop"),
    numbers=("eos_ids",),
)
KEYS = WORDS.keys
"""Keys of the verb's own."""


def parse(arguments: Sequence[str]) -> GenerateOptions:
    """Return the options.

    Raises:
        ConfigError: names every unknown key, wrong type and value out of range.
    """
    return WORDS.parse(arguments, "generate", _range_problems)


def _range_problems(options: GenerateOptions) -> list[str]:
    rules = (
        (bool(options.checkpoint), "checkpoint must name a run folder or a checkpoint, but is empty"),
        (options.max_tokens >= 0, f"max_tokens must be at least 0, but is {options.max_tokens}"),
        (options.num_samples >= 1, f"num_samples must be at least 1, but is {options.num_samples}"),
        (options.batch_size >= 1, f"batch_size must be at least 1, but is {options.batch_size}"),
        (
            0 <= options.temperature < math.inf,
            f"temperature must be a number of at least 0, but is {options.temperature}",
        ),
        (options.top_k >= 0, f"top_k must be at least 0, but is {options.top_k}"),
        (0 < options.top_p <= 1, f"top_p must be above 0 and at most 1, but is {options.top_p}"),
        (0 <= options.min_p <= 1, f"min_p must be in 0 to 1, but is {options.min_p}"),
        (
            0.01 <= options.repetition_penalty <= 100,
            f"repetition_penalty must be a number from 0.01 to 100, but is {options.repetition_penalty}",
        ),
        (all(options.stop), "stop must be a string that is not empty, but is empty"),
        (all(one >= 0 for one in options.eos_ids), f"eos_ids must be at least 0, but are {_listed(options.eos_ids)}"),
        (0 <= options.seed < 2**63, f"seed must be in 0 to 2^63 - 1, but is {options.seed}"),
        (
            options.output.endswith(".jsonl") or not options.output,
            f"output must be the name of a .jsonl file, but is {options.output!r}",
        ),
    )
    return [text for holds, text in rules if not holds]


def _listed(ids: Sequence[int]) -> str:
    return ",".join(map(str, ids))
