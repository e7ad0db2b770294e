"""The task of `trident evaluate`, settled and checked before a rank starts. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from trainer.checkpoint.manifest import IMPORTED_FROM
from trainer.config.compose import recompose
from trainer.config.held_out import has_validation, held_out_of, names_validation, trained_on
from trainer.config.keys import joined
from trainer.config.places import source_key, unwritable
from trainer.config.rules_common import Case
from trainer.config.rules_training import data_source
from trainer.config.schema import DataConfig, DataSource, TridentConfig, WandbMode
from trainer.config.schema_data import ID_FILES
from trainer.data.tokenizer import Tokenizer
from trainer.errors import ConfigError
from trainer.evaluation.evaluate_options import EvaluateOptions
from trainer.evaluation.task_names import find_tasks
from trainer.inference.model_source import ModelSource, composed, find_tokenizer, own_tokenizer_folder, source_of
from trainer.metrics.tensorboard_sink import check_tensorboard

_WITHOUT_TEXT = (*ID_FILES, DataSource.synthetic)


@dataclass(frozen=True)
class AskedData:
    """Documents that are to be scored."""

    config: TridentConfig
    """Its `data.*` is the source; `model.vocab_size` and `train.seed` are the model's."""
    part: str
    """validation, train or all."""
    tokenizer: Tokenizer | None
    stride: int

    @property
    def is_held_out(self) -> bool | None:
        """True or False for one of the parts, None for all."""
        return None if self.part == "all" else self.part == "validation"

    @property
    def name(self) -> str:
        """The key that names the source, with its value, for errors and results."""
        data, key = self.config.data, source_key(self.config)
        shown = {"data.files": ",".join(data.files), "data.hub_path": data.hub_path}
        return f"{key}={shown.get(key, data.source.value)}"


@dataclass(frozen=True)
class Evaluation:
    """Everything that the ranks need to know."""

    options: EvaluateOptions
    source: ModelSource
    words: TridentConfig
    """Config of the words alone; its `logging.*` says where scores go."""
    data: AskedData | None

    def facts(self) -> dict[str, object]:
        """Return what all ranks must have alike."""
        asked = {field.name: getattr(self.options, field.name) for field in fields(self.options)}
        # Rank 0 alone reads data and tasks and writes files, whose paths may differ from machine to machine.
        for name in ("checkpoint", "settings", "output", "samples", "include_path", "tokenizer"):
            del asked[name]
        return {**asked, **self.source.facts(), "scores documents": self.data is not None}

    @property
    def logs(self) -> list[str]:
        """Return the keys that ask for more than the printed scores."""
        logging = self.words.logging
        given = {"logging.tensorboard": logging.tensorboard, "logging.wandb": asks_for_wandb(self.options.settings)}
        return [key for key, is_asked in given.items() if is_asked]


def asks_for_wandb(settings: Sequence[str]) -> bool:
    """Return whether the words ask for wandb: an evaluation goes there only when it is told to."""
    value = [word.partition("=")[2] for word in settings if word.startswith("logging.wandb=")]
    return value[-1:] not in ([], [WandbMode.disabled.value])


def settle(options: EvaluateOptions, world: int | None = None, device_count: int | None = None) -> Evaluation:
    """Return what the options ask for.

    Args:
        options: the words of the command line.
        world: ranks that a launcher started; None if this process will start them.
        device_count: CUDA devices of this machine; None when nobody looked.

    Raises:
        CheckpointError: there is no usable checkpoint.
        ConfigError: there is no tokenizer, no such task, nothing to score, or the layout does not fit.
        DataError: the tokenizer's files cannot be used.
    """
    words = composed(options.settings)
    source = source_of(options.checkpoint, "evaluate", words, world, device_count)
    source = replace(source, ema=options.ema)
    problems = [*_unplaced(options), *_unwritable(options)]
    if options.stride > source.seq_length:
        problems.append(
            f"stride ({options.stride}) must be at most the tokens that the model reads ({source.seq_length})"
        )
    if problems:
        raise ConfigError(problems)
    check_tensorboard(words.logging)
    if options.tasks and own_tokenizer_folder(source.found) is None:
        raise ConfigError(f"tasks need the model's tokenizer, but {source.path} has none (synthetic data have no text)")
    if options.tasks and world is None:
        # Ranks that a launcher started leave it to rank 0, which alone needs the harness.
        find_tasks(options.tasks, options.include_path, "tasks")
    found = Evaluation(options, source, words, _data(options, source))
    if found.logs and not options.output:
        raise ConfigError(
            f"{found.logs[0]} needs output=FILE.json, since its files go into a folder beside it; add it, or leave "
            f"{found.logs[0]} out"
        )
    return found


def _unplaced(options: EvaluateOptions) -> list[str]:
    """Return problems with keys of the config that nothing here reads."""
    problems = []
    for word in options.settings:
        key = word.partition("=")[0]
        if key in ("data.cache_dir", "data.max_samples", "data.prefetch_steps"):
            problems.append(f"{key} has no effect on an evaluation, which reads documents as they are; leave it out")
    return problems


def _unwritable(options: EvaluateOptions) -> list[str]:
    places = (("output", options.output), ("samples", options.samples))
    found = [unwritable(name, key) for key, name in places if name]
    return [problem for problem in found if problem is not None]


def _data(options: EvaluateOptions, source: ModelSource) -> AskedData | None:
    told = [word for word in options.settings if word.partition("=")[0].partition(".")[0] == "data"]
    if options.tasks and not (told or options.part or options.stride):
        if options.tokenizer:
            raise ConfigError("tokenizer has no effect on tasks, which take the model's own; leave it out")
        return None
    names_source = any(word.partition("=")[0] in ("data", "data.source") for word in told)
    is_imported = source.found.is_foreign or IMPORTED_FROM in source.manifest.layout
    if is_imported and not names_source:
        raise ConfigError(
            f"{source.path} holds a model that no run has trained, so it has no data of its own: name a source with "
            "data.source=..., or tasks=...",
            hints=["for example data.source=files 'data.files=[texts/*.txt]'"],
        )
    saved = replace(source.saved, model=replace(source.saved.model, vocab_size=source.manifest.vocab_size))
    start = replace(saved, data=DataConfig()) if names_source else saved
    config = recompose(start, told, ["data"]) if told else start
    if config.data.blend.sources:
        raise ConfigError(
            f"an evaluation reads one source, but the run's data.blend has {joined(config.data.blend.names, 'and')}; "
            "name one with its keys",
            hints=["for example data.source=files 'data.files=[texts/*.txt]'"],
        )
    problems = list(data_source(Case(config, None, None)))
    part = options.part or ("all" if names_source else "validation")
    if part == "validation" and not has_validation(config.data):
        problems.append("part=validation needs data.validation_fraction above 0, but it is 0; use part=all")
    if problems:
        raise ConfigError(problems)
    if names_validation(config.data):
        # What is named is a source of its own, and all of it is read.
        config = replace(config, data=held_out_of(config.data) if part == "validation" else trained_on(config.data))
        part = "all"
    # Whole documents are not split: that nothing is held out makes one piece of each.
    if part == "all":
        config = replace(config, data=replace(config.data, validation_fraction=0.0, test_fraction=0.0))
    tokenizer = None
    if config.data.source not in _WITHOUT_TEXT or options.tokenizer or own_tokenizer_folder(source.found) is not None:
        tokenizer = find_tokenizer(source.found, options.tokenizer)
    return AskedData(config, part, tokenizer, options.stride or source.seq_length)
