"""The task of `trident generate`, settled and checked before a rank starts. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.checkpoint.kept_tokenizer import fits, tokenizer_folder
from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.readable import find_readable, model_in
from trainer.config.compose import compose
from trainer.config.hf_folder import TOKENIZER_FILE, is_hf_folder
from trainer.config.places import absolute_path
from trainer.config.plan import RunPlan, make_plan
from trainer.config.rules_common import Case
from trainer.config.rules_layout import blocks_for_stages, devices, stage_boundaries, world_size
from trainer.config.schema import PipelineSchedule, RuntimeConfig, TokenizerConfig, TokenizerKind, TridentConfig
from trainer.config.validate import problems as all_problems
from trainer.data.chat_template import chat_template
from trainer.data.end_of_text import ends_of_generation
from trainer.data.tokenizer import BYTES_MARK, Tokenizer, load_pretrained, load_tokenizer
from trainer.errors import ConfigError
from trainer.generation.continuation import prompt_ids
from trainer.generation.options import GenerateOptions
from trainer.generation.prompts import Prompt, read_prompts
from trainer.generation.text import Ends
from trainer.model.limits import not_divisible


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
    checkpoint: Path
    manifest: Manifest
    plan: RunPlan
    """Numbers of the model and the layout that write; nothing in it is about training."""
    runtime: RuntimeConfig
    tokenizer: Tokenizer
    ends: Ends
    beginnings: tuple[Beginning, ...]
    """The texts in the order in which they are shown: all samples of the first prompt, then of the next."""


def settle(options: GenerateOptions, world: int | None = None, device_count: int | None = None) -> Task:
    """Return what the options ask for.

    Args:
        options: the words of the command line.
        world: ranks that a launcher started; None if this process will start them.
        device_count: CUDA devices of this machine; None when nobody looked.

    Raises:
        CheckpointError: there is no usable checkpoint.
        ConfigError: its model cannot be computed, there is no tokenizer, the layout does not fit, or a prompt does not.
        DataError: the tokenizer's files cannot be used.
    """
    checkpoint, manifest = find_readable(options.checkpoint, "checkpoint")
    _check_output(options.output)
    plan = _plan(options, checkpoint, manifest, world, device_count)
    tokenizer = find_tokenizer(checkpoint, manifest, options.tokenizer)
    template = chat_template(tokenizer.read) if options.chat else None
    prompts = read_prompts(options, template)
    beginnings = tuple(_beginnings(prompts, tokenizer, options, plan.execution.seq_length))
    ends = _ends(options, tokenizer, manifest)
    return Task(options, checkpoint, manifest, plan, plan.config.runtime, tokenizer, ends, beginnings)


def _check_output(output: str) -> None:
    """Check before texts are written that their file can lie where it shall."""
    folder = absolute_path(output, "output").parent
    if output and not folder.is_dir():
        raise ConfigError(
            f"output must be a file in a folder that exists, but {folder} does not; make it, or change output"
        )


def _plan(
    options: GenerateOptions, checkpoint: Path, manifest: Manifest, world: int | None, device_count: int | None
) -> RunPlan:
    words = compose(list(options.settings)) if options.settings else TridentConfig()
    # Nothing but the model is the run's: how it was trained says nothing about how it writes.
    model = model_in(checkpoint, "checkpoint")
    config = replace(TridentConfig(), model=model, layout=words.layout, runtime=words.runtime)
    case = Case(config, world, device_count)
    problems = [*_model_problems(case), *_layout_problems(case), *world_size(case), *devices(case)]
    if not problems:
        problems += [*blocks_for_stages(case), *stage_boundaries(case)]
    if problems:
        raise ConfigError(problems)
    plan = make_plan(config, manifest.vocab_size, world)
    problems += not_divisible(plan.model, plan.tensor_parallel_size)
    if problems:
        raise ConfigError(problems)
    return plan


def _model_problems(case: Case) -> Iterator[str]:
    """Yield why a model cannot be computed: a Hugging Face folder's config.json may say anything."""
    alone = replace(TridentConfig(), model=case.config.model)
    yield from (line for line in all_problems(alone) if line.startswith("model."))


def _layout_problems(case: Case) -> Iterator[str]:
    layout = case.config.layout
    sizes = {
        "layout.pipeline_parallel_size": layout.pipeline_parallel_size,
        "layout.tensor_parallel_size": layout.tensor_parallel_size,
    }
    yield from (f"{key} must be at least 1, but is {size}" for key, size in sizes.items() if size < 1)
    if min(sizes.values()) < 1:
        return
    if layout.sequence_parallel:
        yield "layout.sequence_parallel must be false to generate, since a single token cannot be sharded, but is true"
    if layout.pipeline_schedule is not PipelineSchedule.f1b1:
        yield (
            f"layout.pipeline_schedule must be 1f1b to generate, which has no backward pass, but is "
            f"{layout.pipeline_schedule.value}"
        )
    if case.dp != 1:
        yield (
            f"layout.data_parallel_size must be 1 to generate, but is {case.dp}; replicas would each write other "
            "prompts: start the command once for each part of them"
        )


def find_tokenizer(checkpoint: Path, manifest: Manifest, other: str = "") -> Tokenizer:
    """Return a checkpoint's tokenizer, or the other one that a user names.

    Raises:
        ConfigError: there is none, or it does not fit the model.
        DataError: it cannot be used.
    """
    if other:
        folder = absolute_path(other, "tokenizer")
        is_saved = (folder / BYTES_MARK).is_file()
        tokenizer = (
            load_tokenizer(folder)
            if is_saved
            else load_pretrained(TokenizerConfig(TokenizerKind.pretrained, path=other), "tokenizer")
        )
        if not fits(tokenizer, manifest):
            raise ConfigError(
                f"tokenizer must have at most as many ids as the checkpoint's vocabulary ({manifest.vocab_size}), but "
                f"{other} has {tokenizer.vocab_size}; use the one that the model was trained with"
            )
        return tokenizer
    if is_hf_folder(checkpoint):
        return _tokenizer_beside(checkpoint, manifest)
    found = tokenizer_folder(checkpoint, manifest)
    if found is None:
        raise ConfigError(
            f"checkpoint must hold its tokenizer, but {checkpoint} has none, and none that is known to be its run's is "
            "two folders above (synthetic data have no text)",
            hints=["copy the checkpoint together with its run's folder, or name the tokenizer: tokenizer=PATH"],
        )
    return load_tokenizer(found)


def _tokenizer_beside(folder: Path, manifest: Manifest) -> Tokenizer:
    """Return the tokenizer of a Hugging Face folder."""
    if not (folder / TOKENIZER_FILE).is_file():
        raise ConfigError(
            f"checkpoint must hold its tokenizer ({TOKENIZER_FILE}), but {folder} has none; name one: tokenizer=PATH"
        )
    found = load_pretrained(TokenizerConfig(TokenizerKind.pretrained, path=str(folder)), "checkpoint")
    if not fits(found, manifest):
        raise ConfigError(
            f"the tokenizer must have at most vocab_size ({manifest.vocab_size}) ids, but that of {folder} has "
            f"{found.vocab_size}"
        )
    return found


def _ends(options: GenerateOptions, tokenizer: Tokenizer, manifest: Manifest) -> Ends:
    unknown = [one for one in options.eos_ids if one >= manifest.vocab_size]
    if unknown:
        raise ConfigError(
            f"eos_ids must be below the model's vocabulary ({manifest.vocab_size}), but one is {unknown[0]}"
        )
    ids = options.eos_ids or (tokenizer.eos_id, *ends_of_generation(tokenizer.read))
    return Ends(frozenset(ids), options.stop)


def _beginnings(
    prompts: list[Prompt], tokenizer: Tokenizer, options: GenerateOptions, seq_length: int
) -> Iterator[Beginning]:
    for prompt in prompts:
        ids = tuple(prompt_ids(tokenizer, prompt.text))
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
