"""A trained model as a verb is given it: a run, a checkpoint or a Hugging Face model, and the layout it shall be in.

No torch: all of it is settled and checked before a rank starts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.checkpoint.kept_tokenizer import fits, same_tokenizer, saved_config, tokenizer_folder
from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.origin import Found, foreign, identity
from trainer.checkpoint.store import find_checkpoint
from trainer.config.compose import compose
from trainer.config.hf_folder import HF_CONFIG, TOKENIZER_FILE, find_source, is_hf_folder, is_hub_name, read_hf_model
from trainer.config.keys import flatten
from trainer.config.places import absolute_path
from trainer.config.plan import RunPlan, make_plan
from trainer.config.rules_common import Case
from trainer.config.rules_layout import blocks_for_stages, devices, stage_boundaries, world_size
from trainer.config.rules_ranges import RULES
from trainer.config.schema import (
    BatchConfig,
    ModelConfig,
    PipelineSchedule,
    TokenizerConfig,
    TokenizerKind,
    TridentConfig,
)
from trainer.config.validate import problems
from trainer.data.end_of_text import beside, ends_of_generation
from trainer.data.pretrained_tokenizer import load_pretrained
from trainer.data.tokenizer import BYTES_MARK, Tokenizer, load_tokenizer
from trainer.errors import CheckpointError, ConfigError
from trainer.model.limits import not_divisible
from trainer.run_paths import CONFIG, HUGGING_FACE

KEY = "checkpoint"
_USED = ("runtime.device", "runtime.threads_per_rank", "runtime.timeout_s")
"""Keys of processes that do not train."""


@dataclass(frozen=True)
class ModelSource:
    """A model, and the layout in which it is used."""

    found: Found
    """The checkpoint, or the Hugging Face folder."""
    saved: TridentConfig
    """Config of the run that saved it; of a Hugging Face model, the defaults with its `model.*`."""
    plan: RunPlan
    """Numbers of the model and of the layout that uses it; nothing in it is about training."""
    ema: bool = False
    """Use the average of the run's weights instead of the weights."""

    @property
    def path(self) -> Path:
        """Folder of the checkpoint or of the Hugging Face model."""
        return self.found.path

    @property
    def manifest(self) -> Manifest:
        """Manifest of the checkpoint, or what stands in its place."""
        return self.found.manifest

    @property
    def seq_length(self) -> int:
        """Largest number of tokens that the model reads."""
        return self.plan.execution.seq_length

    def facts(self) -> dict[str, object]:
        """Return what all ranks must have alike; the path of the same model may differ from machine to machine."""
        return {"the checkpoint": identity(self.path), "the layout": self.plan.mesh.name, "ema": self.ema}


def find_model(name: str) -> tuple[Found, TridentConfig]:
    """Return the model that a user names, and the config that it was saved with.

    Args:
        name: a run's folder (its newest checkpoint), a checkpoint, or the folder or hub name of a Hugging Face model.

    Raises:
        CheckpointError: there is no usable checkpoint.
        ConfigError: the Hugging Face model cannot be computed.
    """
    path = absolute_path(name, KEY)
    if is_hf_folder(path) or is_hub_name(name):
        found = foreign(find_source(name, KEY), KEY)
        config = replace(TridentConfig(), model=read_hf_model(found.path, KEY).model)
        wrong = [f"{found.path / HF_CONFIG}: {line}" for line in problems(config) if line.startswith("model.")]
        if wrong:
            raise ConfigError(wrong)
        return found, config
    found = Found(*find_checkpoint(path))
    return found, saved_config(found.path / CONFIG)


def composed(settings: Sequence[str]) -> TridentConfig:
    """Return the config that the words of a verb make of the defaults.

    Raises:
        ConfigError: a word cannot be used, is out of its range, or has no effect without training.
    """
    if not settings:
        return TridentConfig()
    config = compose(list(settings))
    keys = list(dict.fromkeys(word.partition("=")[0] for word in settings))
    values, defaults = flatten(config), flatten(TridentConfig())
    idle = [key for key in keys if key.startswith("runtime.") and key not in _USED and values[key] != defaults[key]]
    wrong = [f"{key} has no effect on a model that is used without training; leave it out" for key in idle]
    groups = tuple({f"{key.partition('.')[0]}." for key in keys})
    wrong += [line for rule in RULES for line in rule(Case(config, None, None)) if line.startswith(groups)]
    if wrong:
        raise ConfigError(wrong)
    return config


def source_of(
    name: str, verb: str, words: TridentConfig, world: int | None = None, device_count: int | None = None
) -> ModelSource:
    """Return a model in the layout that the words of a verb ask for.

    Args:
        name: as for `find_model`.
        verb: the verb, for errors. All verbs but `evaluate` have no use for replicas.
        words: the config of its words, whose layout and runtime count.
        world: ranks that a launcher started; None if this process will start them.
        device_count: CUDA devices of this machine; None when nobody looked.

    Raises:
        CheckpointError: there is no usable checkpoint.
        ConfigError: the layout does not fit, or the Hugging Face model cannot be computed.
    """
    found, saved = find_model(name)
    plan = _plan(saved.model, found.manifest.vocab_size, Case(words, world, device_count), verb)
    return ModelSource(found, saved, plan)


def _plan(model: ModelConfig, vocab_size: int, asked: Case, verb: str) -> RunPlan:
    # Nothing but the model is the run's: how it was trained says nothing about how it is used.
    config = replace(TridentConfig(), model=model, layout=asked.config.layout, runtime=asked.config.runtime)
    case = replace(asked, config=config)
    wrong = [*_layout_problems(case, verb), *world_size(case), *devices(case)]
    if not wrong:
        wrong += [*blocks_for_stages(case), *stage_boundaries(case)]
    if wrong:
        raise ConfigError(wrong)
    config = replace(config, batch=BatchConfig(global_batch_size=case.dp))
    plan = make_plan(config, vocab_size, asked.world_size)
    wrong += not_divisible(plan.model, plan.tensor_parallel_size)
    if wrong:
        raise ConfigError(wrong)
    return plan


def _layout_problems(case: Case, verb: str) -> Iterator[str]:
    layout = case.config.layout
    if layout.sequence_parallel:
        why = "a single token" if verb == "generate" else "a text of any length"
        yield f"layout.sequence_parallel must be false to {verb}, since {why} cannot be sharded, but is true"
    if layout.pipeline_schedule is not PipelineSchedule.f1b1:
        yield (
            f"layout.pipeline_schedule must be 1f1b to {verb}, which has no backward pass, but is "
            f"{layout.pipeline_schedule.value}"
        )
    if case.dp != 1 and verb == "generate":
        yield (
            f"layout.data_parallel_size must be 1 to generate, but is {case.dp}; replicas would each write other "
            "prompts: start the command once for each part of them"
        )


def find_tokenizer(found: Found, other: str = "") -> Tokenizer:
    """Return a model's tokenizer, or the other one that a user names.

    Raises:
        ConfigError: there is none, or it does not fit the model.
        DataError: it cannot be used.
    """
    manifest = found.manifest
    if other:
        folder = absolute_path(other, "tokenizer")
        tokenizer = load_tokenizer(folder) if (folder / BYTES_MARK).is_file() else _pretrained(other, "tokenizer")
        if not fits(tokenizer, manifest):
            raise ConfigError(
                f"tokenizer must have at most as many ids as the checkpoint's vocabulary ({manifest.vocab_size}), but "
                f"{other} has {tokenizer.vocab_size}; use the one that the model was trained with"
            )
        return tokenizer
    own = own_tokenizer_folder(found)
    if own is None and found.is_foreign:
        raise ConfigError(f"{found.path} must hold {TOKENIZER_FILE}, but has none; name one: tokenizer=PATH")
    if own is None:
        raise ConfigError(
            f"checkpoint must hold its tokenizer, but {found.path} has none, and none that is known to be its run's is "
            "two folders above (synthetic data have no text)",
            hints=["copy the checkpoint together with its run's folder, or name the tokenizer: tokenizer=PATH"],
        )
    if not found.is_foreign:
        return load_tokenizer(own)
    tokenizer = _pretrained(str(own), KEY)
    if not fits(tokenizer, manifest):
        raise ConfigError(
            f"the tokenizer must have at most vocab_size ({manifest.vocab_size}) ids, but that of {found.path} has "
            f"{tokenizer.vocab_size}"
        )
    return tokenizer


def own_tokenizer_folder(found: Found) -> Path | None:
    """Return the folder of a model's own tokenizer; None if it has none.

    Raises:
        CheckpointError: it has changed since it was saved.
    """
    if found.is_foreign:
        return found.path if (found.path / TOKENIZER_FILE).is_file() else None
    return tokenizer_folder(found.path, found.manifest)


def exported_tokenizer_folder(found: Found) -> Path | None:
    """Return the folder with the tokenizer that `trident export` would write; None if there is none.

    That is the one that the weights came with, as it was, unless the run has another.
    """
    own = own_tokenizer_folder(found)
    return own if own is None or found.is_foreign else exported_tokenizer(own, found.path / HUGGING_FACE)


def exported_tokenizer(own: Path, kept: Path) -> Path:
    """Return the folder whose tokenizer `trident export` writes: the kept one, unless the run's own is another.

    Args:
        own: the run's tokenizer.
        kept: the folder of the small files that its weights came with, which need not exist.
    """
    both = (own / TOKENIZER_FILE).is_file() and (kept / TOKENIZER_FILE).is_file()
    return kept if both and same_tokenizer(own, kept) else own


def hf_files(found: Found) -> Path | None:
    """Return the folder of the Hugging Face model's small files that a model's weights and its tokenizer came with.

    None if they came with none, or if the run has another tokenizer, whose ids those files do not speak of.

    Raises:
        CheckpointError: the tokenizer has changed since it was saved.
    """
    if found.is_foreign:
        return found.path
    own, kept = own_tokenizer_folder(found), found.path / HUGGING_FACE
    return None if own is None or exported_tokenizer(own, kept) == own else kept


def end_ids(tokenizer: Tokenizer, files: Path | None) -> tuple[int, ...]:
    """Return the tokens that end a text: the tokenizer's, and those that files name for generation.

    Args:
        tokenizer: the files beside it are asked first.
        files: see `hf_files`.

    Raises:
        DataError: a file cannot be understood.
        CheckpointError: the config.json of a Hugging Face model cannot be read.
    """
    named = ends_of_generation(tokenizer.read)
    if not named and files is not None:
        named = ends_of_generation(beside(files / TOKENIZER_FILE)) or _config_ends(files / HF_CONFIG)
    return tuple(dict.fromkeys((tokenizer.eos_id, *named)))


def _config_ends(path: Path) -> tuple[int, ...]:
    """Return the ends that a config.json names, which count where there is no generation_config.json."""
    if not path.is_file():
        return ()
    try:
        number = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} must be readable, but: {error}") from error
    numbers = number if isinstance(number, list) else [number]
    return tuple(one for one in numbers if isinstance(one, int) and not isinstance(one, bool) and one >= 0)


def _pretrained(path: str, key: str) -> Tokenizer:
    return load_pretrained(TokenizerConfig(TokenizerKind.pretrained, path=path), key)
