"""The task of `trident generate`, settled and checked before a rank starts. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

from trainer.config.places import unwritable
from trainer.data.chat_template import chat_template
from trainer.data.tokenizer import Tokenizer
from trainer.errors import ConfigError
from trainer.generation.continuation import prompt_ids
from trainer.generation.options import GenerateOptions
from trainer.generation.prompts import Prompt, read_prompts
from trainer.generation.text import Ends
from trainer.inference.model_source import ModelSource, composed, end_ids, find_tokenizer, hf_files, source_of


@dataclass(frozen=True)
class Beginning:
    """A text that is to be written."""

    prompt: Prompt
    ids: tuple[int, ...]
    """Tokens of the prompt."""
    max_tokens: int
    """Largest number of tokens that follow, at least 1."""
    seed: int


@dataclass(frozen=True)
class Task:
    """Everything that the ranks need to know."""

    options: GenerateOptions
    source: ModelSource
    tokenizer: Tokenizer
    ends: Ends
    beginnings: tuple[Beginning, ...]
    """The texts in the order in which they are shown: all samples of the first prompt, then of the next."""

    def facts(self) -> dict[str, object]:
        """Return what all ranks must have alike."""
        asked = {field.name: getattr(self.options, field.name) for field in fields(self.options)}
        # The same checkpoint may be under another path on another machine.
        del asked["checkpoint"], asked["settings"], asked["output"]
        tokens = [one.ids for one in self.beginnings]
        return {**asked, **self.source.facts(), "the tokens of the prompts": tokens}


def settle(options: GenerateOptions, world: int | None = None, device_count: int | None = None) -> Task:
    """Return what the options ask for.

    Args:
        options: the words of the command line.
        world: ranks that a launcher started; None if this process will start them.
        device_count: CUDA devices of this machine; None when nobody looked.

    Raises:
        CheckpointError: there is no usable checkpoint.
        ConfigError: there is no tokenizer, the layout does not fit, or a prompt does not.
        DataError: the tokenizer's files cannot be used.
    """
    source = source_of(options.checkpoint, "generate", composed(options.settings), world, device_count)
    source = replace(source, ema=options.ema)
    _check_output(options.output)
    tokenizer = find_tokenizer(source.found, options.tokenizer)
    template = chat_template(tokenizer.read) if options.chat else None
    prompts = read_prompts(options, template)
    # Files of a checkpoint speak of its own tokenizer.
    files = None if options.tokenizer and not source.found.is_foreign else hf_files(source.found)
    beginnings = tuple(_beginnings(prompts, tokenizer, options, source.seq_length, files is not None))
    ends = _ends(options, tokenizer, files, source.manifest.vocab_size)
    return Task(options, source, tokenizer, ends, beginnings)


def _check_output(output: str) -> None:
    """Check before texts are written that their file can lie where it shall."""
    problem = unwritable(output, "output") if output else None
    if problem is not None:
        raise ConfigError(problem)


def _ends(options: GenerateOptions, tokenizer: Tokenizer, files: Path | None, vocab_size: int) -> Ends:
    unknown = [one for one in options.eos_ids if one >= vocab_size]
    if unknown:
        raise ConfigError(f"eos_ids must be below the model's vocabulary ({vocab_size}), but one is {unknown[0]}")
    return Ends(frozenset(options.eos_ids or end_ids(tokenizer, files)), options.stop)


def _beginnings(
    prompts: list[Prompt], tokenizer: Tokenizer, options: GenerateOptions, seq_length: int, is_imported: bool
) -> Iterator[Beginning]:
    for prompt in prompts:
        ids = tuple(prompt_ids(tokenizer, prompt.text, is_imported and not prompt.is_rendered))
        wanted = tokens_that_fit(len(ids), options.max_tokens, seq_length, prompt.origin)
        for sample in range(options.num_samples):
            yield Beginning(prompt, ids, wanted, options.seed + sample)


def tokens_that_fit(prompt_tokens: int, max_tokens: int, seq_length: int, origin: str = "prompt") -> int:
    """Return the largest number of tokens that may follow a prompt.

    Args:
        prompt_tokens: tokens of the prompt.
        max_tokens: number that is wanted; 0: all that there is room for.
        seq_length: positions of the model.
        origin: the prompt's name in the error.

    Raises:
        ConfigError: they do not fit into the model's sequence length.
    """
    room = seq_length - prompt_tokens
    wanted = max_tokens or max(1, room)
    if wanted > room:
        asked = f" and max_tokens is {wanted}" if max_tokens else ", which leaves no room for another"
        raise ConfigError(
            f"{origin} and max_tokens must fit into model.seq_length ({seq_length} tokens), but the prompt has "
            f"{prompt_tokens} tokens{asked}"
        )
    return wanted
