"""The task of `trident evaluate`, settled and checked before a rank starts. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from trainer.checkpoint.manifest import IMPORTED_FROM
from trainer.config.blend_sources import source_configs
from trainer.config.compose import recompose
from trainer.config.held_out import has_validation, held_out_of, names_validation, trained_on
from trainer.config.keys import did_you_mean
from trainer.config.places import source_key, unwritable
from trainer.config.rules_blend import blend
from trainer.config.rules_common import Case
from trainer.config.rules_training import data_source
from trainer.config.schema import DataConfig, DataSource, TridentConfig, WandbMode
from trainer.config.schema_data import ID_FILES
from trainer.data.token_manifest import PARTS
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
    """validation, test, train or all."""
    tokenizer: Tokenizer | None
    stride: int
    source: str = ""
    """Name of the source, if it is one of a blend."""
    weight: float = 1.0
    """Weight of the source in the blend."""

    @property
    def part_number(self) -> int | None:
        """Place of the part in `token_manifest.PARTS`; None for all."""
        return None if self.part == "all" else PARTS.index(self.part)

    @property
    def name(self) -> str:
        """The key that names the source, with its value, for errors and results."""
        if self.source:
            return f"data.blend.{self.source}"
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
    data: tuple[AskedData, ...]
    """The documents of each source; none: tasks alone are asked for."""

    def facts(self) -> dict[str, object]:
        """Return what all ranks must have alike."""
        asked = {field.name: getattr(self.options, field.name) for field in fields(self.options)}
        # Rank 0 alone reads data and tasks and writes files, whose paths may differ from machine to machine.
        for name in ("checkpoint", "settings", "output", "samples", "include_path", "tokenizer"):
            del asked[name]
        return {**asked, **self.source.facts(), "scores documents": bool(self.data)}

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


def _data(options: EvaluateOptions, source: ModelSource) -> tuple[AskedData, ...]:
    told = [word for word in options.settings if word.partition("=")[0].partition(".")[0] == "data"]
    if options.tasks and not (told or options.part or options.sources or options.stride):
        if options.tokenizer:
            raise ConfigError("tokenizer has no effect on tasks, which take the model's own; leave it out")
        return ()
    names_source = any(word.partition("=")[0] in ("data", "data.source", "data.blend") for word in told)
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
    part = options.part or ("all" if names_source else "validation")
    case = Case(config, None, None)
    problems = [*(blend(case) if config.data.blend.sources else data_source(case)), *_unknown_sources(options, config)]
    if problems:
        raise ConfigError(problems)
    sources = _with_part(config, options, part)
    needs_text = any(one.data.source not in _WITHOUT_TEXT for one in sources.values())
    tokenizer = None
    if needs_text or options.tokenizer or own_tokenizer_folder(source.found) is not None:
        tokenizer = find_tokenizer(source.found, options.tokenizer)
    weights = config.data.blend.plain_weights()
    return tuple(
        AskedData(*_read(own, part), tokenizer, options.stride or source.seq_length, name, weights.get(name, 1.0))
        for name, own in sources.items()
    )


def _unknown_sources(options: EvaluateOptions, config: TridentConfig) -> list[str]:
    names = config.data.blend.names
    if options.sources and not names:
        return ["sources has no effect on data without data.blend; leave it out"]
    return [
        f"sources must name sources of data.blend ({', '.join(names)}), but names {name}{did_you_mean(name, names)}"
        for name in options.sources
        if name not in names
    ]


def _with_part(config: TridentConfig, options: EvaluateOptions, part: str) -> dict[str, TridentConfig]:
    """Return name -> config of the sources of which the part is read. The only source has no name.

    As in training, a source of a blend of which nothing is held out is left out, unless it is named.

    Raises:
        ConfigError: there is none, or one that is named has no such part.
    """
    found = source_configs(config) or {"": config}
    if options.sources:
        found = {name: own for name, own in found.items() if name in options.sources}
    missing = [name for name, own in found.items() if not _has(own.data, part)]
    if options.sources or len(missing) == len(found):
        key = {"validation": "validation_fraction", "test": "test_fraction"}.get(part)
        keys = [f"data.blend.{name}.{key}" if name else f"data.{key}" for name in missing]
        if keys:
            raise ConfigError([f"part={part} needs {one} above 0, but it is 0; use part=all" for one in keys])
    return {name: own for name, own in found.items() if name not in missing}


def _has(data: DataConfig, part: str) -> bool:
    if part == "validation":
        return has_validation(data)
    return part != "test" or data.test_fraction > 0


def _read(config: TridentConfig, part: str) -> tuple[TridentConfig, str]:
    """Return the config of a source as it is read, and which part of that."""
    data = config.data
    if names_validation(data):
        data = held_out_of(data) if part == "validation" else trained_on(data)
        # What is named is a source of its own, and all of it is read but for what is kept for the test.
        part = part if data.test_fraction else "all"
    # Whole documents are not split: that nothing is held out makes one piece of each.
    if part == "all":
        data = replace(data, validation_fraction=0.0, test_fraction=0.0)
    return replace(config, data=data), part
