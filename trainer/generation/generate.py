"""Sample text from a checkpoint of any layout, in one process: the shards are put together first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from trainer.checkpoint.fragments import TensorFolder
from trainer.checkpoint.kept_tokenizer import fits, tokenizer_folder
from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.store import find_checkpoint
from trainer.config.compose import from_yaml
from trainer.config.models import make_execution, make_model
from trainer.config.places import absolute_path
from trainer.config.schema import ModelConfig, RecomputeKind, TokenizerConfig, TokenizerKind
from trainer.data.tokenizer import BYTES_MARK, Tokenizer, load_pretrained, load_tokenizer
from trainer.errors import CheckpointError, ConfigError
from trainer.generation.continuation import prompt_ids, text_after
from trainer.generation.options import GenerateOptions
from trainer.generation.sampling import next_token
from trainer.model.gpt import GPT, KeyValueCache, ModelContext, full_logits
from trainer.run_paths import CONFIG
from trainer.tensor_parallel.init import fill
from trainer.topology.groups import SingleGroup


def whole_model(model: ModelConfig, vocab_size: int) -> GPT:
    """Return a model in one piece, in evaluation mode, empty: its weights are still to be filled in."""
    context = ModelContext(
        tensor=SingleGroup(),
        sequence_parallel=False,
        execution=replace(make_execution(model, 1), recompute=RecomputeKind.none),
        spec=make_model(model, vocab_size),
    )
    return GPT(context).eval()


def load_model(checkpoint: Path, manifest: Manifest) -> GPT:
    """Return the whole model of a checkpoint, in evaluation mode, fp32, on CPU or the first CUDA device.

    Raises:
        CheckpointError: weights are missing or do not fit the run's config.
    """
    config = from_yaml((checkpoint / CONFIG).read_text(encoding="utf-8"))
    model = whole_model(config.model, manifest.vocab_size)
    tensors = TensorFolder(checkpoint, manifest.files)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Rows beyond the vocabulary are padding of this layout; the model never chooses them.
    read = fill(model, lambda spec, _: tensors.read_shard("weight", spec, rank=0, size=1), device)
    unread = set(tensors.names()) - read
    if unread:
        raise CheckpointError(f"{checkpoint} must hold the model of its config.yaml, but also holds {min(unread)}")
    return model


@torch.inference_mode()
def sample(model: GPT, prompt: list[int], options: GenerateOptions, eos_id: int | None, seed: int) -> list[int]:
    """Return the tokens that follow `prompt`, up to the end-of-text token or `options.max_tokens`.

    Raises:
        ConfigError: prompt and tokens do not fit into the model's sequence length.
    """
    seq_length = model.context.execution.seq_length
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    room = seq_length - len(prompt)
    wanted = options.max_tokens or max(1, room)
    if wanted > room:
        asked = f" and max_tokens is {wanted}" if options.max_tokens else ", which leaves no room for another"
        raise ConfigError(
            f"prompt and max_tokens must fit into model.seq_length ({seq_length} tokens), but the prompt has "
            f"{len(prompt)} tokens{asked}"
        )
    cache = KeyValueCache(len(prompt) + wanted)
    fresh = torch.tensor([prompt], device=device)
    drawn: list[int] = []
    for _ in range(wanted):
        logits = full_logits(model(cache.following(fresh), cache)[-1], model.context).float()
        fresh = next_token(logits, options.temperature, options.top_k, options.top_p, generator).reshape(1, 1)
        token = int(fresh)
        if token == eos_id:
            break
        drawn.append(token)
    return drawn


def continued(model: GPT, tokenizer: Tokenizer, prompt: str, options: GenerateOptions, seed: int) -> str:
    """Return the text with which the model continues `prompt`; an empty prompt is the beginning of a document.

    Raises:
        ConfigError: prompt and tokens do not fit into the model's sequence length.
    """
    ids = prompt_ids(tokenizer, prompt)
    return text_after(tokenizer, prompt, ids, sample(model, ids, options, tokenizer.eos_id, seed))


def _tokenizer(checkpoint: Path, manifest: Manifest, other: str) -> Tokenizer:
    if other:
        kind = TokenizerKind.pretrained
        folder = absolute_path(other, "tokenizer")
        is_saved = (folder / BYTES_MARK).is_file()
        tokenizer = (
            load_tokenizer(folder) if is_saved else load_pretrained(TokenizerConfig(kind, path=other), "tokenizer")
        )
        if not fits(tokenizer, manifest):
            raise ConfigError(
                f"tokenizer must have at most as many ids as the checkpoint's vocabulary ({manifest.vocab_size}), but "
                f"{other} has {tokenizer.vocab_size}; use the one that the model was trained with"
            )
        return tokenizer
    found = tokenizer_folder(checkpoint, manifest)
    if found is None:
        raise ConfigError(
            f"checkpoint must hold its tokenizer, but {checkpoint} has none, and none that is known to be its run's is "
            "two folders above (synthetic data have no text)",
            hints=["copy the checkpoint together with its run's folder, or name the tokenizer: tokenizer=PATH"],
        )
    return load_tokenizer(found)


def generate_text(options: GenerateOptions) -> Iterator[str]:
    """Yield `options.num_samples` texts, each with its prompt in front.

    Raises:
        CheckpointError: there is no usable checkpoint.
        ConfigError: the run has no tokenizer.
    """
    checkpoint, manifest = find_checkpoint(absolute_path(options.checkpoint, "checkpoint"))
    tokenizer = _tokenizer(checkpoint, manifest, options.tokenizer)
    model = load_model(checkpoint, manifest)
    for index in range(options.num_samples):
        yield options.prompt + continued(model, tokenizer, options.prompt, options, seed=options.seed + index)
