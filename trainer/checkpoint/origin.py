"""The origin of a run: one rule for every way to start it. No torch.

A run that has checkpoints of its own goes on from the newest of them. `checkpoint.resume=PATH` and
`checkpoint.init_from=PATH` only say where a run without any begins; so the command that began a run goes on with it,
however often and by whatever it is started again. A command that names another origin than the run in the folder had is
refused: neither the command nor the folder is ignored silently.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from trainer.checkpoint.kept_tokenizer import saved_config
from trainer.checkpoint.manifest import IMPORTED_FROM, MANIFEST, Manifest, check_sizes, file_facts, read_manifest
from trainer.checkpoint.store import CheckpointStore, find_checkpoint
from trainer.config.hf_folder import find_source, hf_identity, is_hf_folder, is_hub_name, kept_files, read_hf_model
from trainer.config.key_text import shown_value
from trainer.config.lora import without_lora
from trainer.config.models import changed_keys
from trainer.config.places import absolute_path
from trainer.config.schema import CheckpointConfig, ModelConfig, OptimizerConfig, TridentConfig
from trainer.errors import CheckpointError, ConfigError
from trainer.files import write_atomically
from trainer.interchange.linked_names import LinkedNames
from trainer.interchange.weight_headers import WeightHeaders
from trainer.interchange.weight_index import weight_files
from trainer.loop.state import TrainState
from trainer.run_paths import CONFIG, HUGGING_FACE
from trainer.spec.model import Model

ORIGIN_FILE = "origin.json"
_NEWEST_WORDS = ("auto", "latest", "last", "newest", "true", "yes", "on", "resume")
_FRESH_WORDS = ("never", "none", "no", "false", "null", "off", "scratch")


class Use(Enum):
    """The part of a checkpoint that a run takes."""

    own = "own"
    """Everything: it is the run's own."""
    resumed = "checkpoint.resume"
    """Everything; the checkpoint is another run's."""
    weights = "checkpoint.init_from"
    """The weights of another run; the rest begins anew."""


class Found(NamedTuple):
    """A checkpoint to begin from."""

    path: Path
    manifest: Manifest
    """Manifest; of a Hugging Face folder, which has none, what stands in its place."""
    use: Use = Use.own

    @property
    def is_foreign(self) -> bool:
        """True for a Hugging Face folder."""
        return is_hf_folder(self.path)

    def kept_files(self) -> list[Path]:
        """Return the small files of the Hugging Face model that the weights came from, if they did."""
        if self.is_foreign:
            return kept_files(self.path)
        folder = self.path / HUGGING_FACE
        return sorted(folder.iterdir()) if folder.is_dir() else []


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a run began from; kept in its folder, since its key may not be given again."""

    key: str
    """checkpoint.resume or checkpoint.init_from."""
    named: str
    """The key's value, made absolute: a run's folder or a checkpoint."""
    checkpoint: str
    """The checkpoint that was taken."""
    step: int
    """Step of the checkpoint."""
    manifest: str
    """Hash of its manifest, which identifies the checkpoint even if it was moved."""

    @classmethod
    def of(cls, found: Found, named: str) -> Origin:
        """Return the record of a run that begins from `found`, which the value `named` led to."""
        return cls(
            found.use.value,
            str(absolute_path(named, found.use.value)),
            str(found.path),
            found.manifest.step,
            identity(found.path),
        )


def read_origin(run_dir: Path) -> Origin | None:
    """Return the origin of the run in a folder; None if there is none, or if the record cannot be read."""
    try:
        raw = json.loads((run_dir / ORIGIN_FILE).read_text(encoding="utf-8"))
        words = {name: str(raw[name]) for name in ("key", "named", "checkpoint", "manifest")}
        return Origin(step=int(raw["step"]), **words)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_origin(run_dir: Path, origin: Origin) -> None:
    """Write down the origin of the run in a folder.

    Raises:
        StorageError: it cannot be written.
    """
    write_atomically(run_dir / ORIGIN_FILE, json.dumps(asdict(origin), indent=1) + "\n")


def named_origin(checkpoint: CheckpointConfig) -> tuple[Use, str] | None:
    """Return the key that names an origin, and its value; None if neither does."""
    if checkpoint.init_from is not None:
        return Use.weights, checkpoint.init_from
    return None if checkpoint.resume in ("auto", "never") else (Use.resumed, checkpoint.resume)


def find_origin(config: TridentConfig, run_dir: Path) -> Found | None:
    """Return the origin of a run without checkpoints of its own: None for its first step with fresh weights.

    A run that was killed before its first save begins where it began before, even if the run that was named has newer
    checkpoints by now.

    Raises:
        CheckpointError: the name leads to no whole checkpoint, or to one of another model.
        ConfigError: the checkpoint leaves no step of `train.steps` to train.
    """
    named = named_origin(config.checkpoint)
    if named is None:
        return None
    use, word = named
    found = _as_before(use, word, run_dir) or _named(use, word)
    if use is Use.resumed and IMPORTED_FROM in found.manifest.layout:
        raise ConfigError(
            f"checkpoint.resume must name a checkpoint of a run that has trained, but {found.path} holds the weights "
            "of an imported model alone",
            hints=[f"to train on with them, give checkpoint.init_from={word} instead"],
        )
    check_model(found.path, config.model, use)
    step, steps = found.manifest.step, config.train.steps
    if use is Use.resumed and config.train.epochs is None and step >= steps:
        raise ConfigError(
            f"train.steps ({steps}) must be above the step of the checkpoint that checkpoint.resume names, but "
            f"{found.path} is of step {step}, and there is nothing to train",
            hints=[
                "train.steps counts the steps before the checkpoint too; give a larger one to go on",
                f"to train from step 1 with its weights alone, give checkpoint.init_from={word} instead",
            ],
        )
    return found


def _as_before(use: Use, word: str, run_dir: Path) -> Found | None:
    """Return the checkpoint that this run began from before, if it has not changed."""
    origin = read_origin(run_dir)
    if origin is None or (origin.key, origin.named) != (use.value, str(absolute_path(word, use.value))):
        return None
    path = Path(origin.checkpoint)
    try:
        if is_hf_folder(path):
            return foreign(path) if identity(path) == origin.manifest else None
        manifest = read_manifest(path)
        check_sizes(path, manifest)
        return Found(path, manifest, use) if identity(path) == origin.manifest else None
    except (CheckpointError, OSError):
        return None


def _named(use: Use, word: str) -> Found:
    path = absolute_path(word, use.value)
    try:
        if use is Use.weights and (is_hf_folder(path) or is_hub_name(word)):
            return foreign(find_source(word, use.value))
        return Found(*find_checkpoint(path), use)
    except CheckpointError as error:
        if use is Use.weights:
            text, hints = f"checkpoint.init_from must be the path of a checkpoint, but: {error}", error.hints
        else:
            text = f"checkpoint.resume must be auto, never, or the path of a checkpoint, but: {error}"
            hints = (*_meant(use, word), *error.hints)
        raise CheckpointError(text, hints) from error


def foreign(folder: Path, key: str = Use.weights.value) -> Found:
    """Return a Hugging Face folder as an origin.

    Args:
        folder: the folder.
        key: the key that it was written for; errors name it.

    Raises:
        CheckpointError: there are no weights.
        ConfigError: the model cannot be computed.
    """
    model = read_hf_model(folder, key).model
    weight_files(folder)
    state = TrainState(sample_length=model.seq_length).to_dict()
    return Found(folder, Manifest(0, model.vocab_size or 0, state, {}, None, {}, {}, {}), Use.weights)


def check_tensors(found: Found, model: Model) -> None:
    """Check that a Hugging Face folder has the tensors of a model, by what its files say. Pickles are not looked into.

    Raises:
        CheckpointError: one is missing, has another shape, or belongs to nothing.
    """
    if not found.is_foreign:
        return
    headers = WeightHeaders(found.path)
    if headers.are_known:
        source = read_hf_model(found.path, Use.weights.value)
        LinkedNames(headers, source.family, source.values, model.base_tensors)


def _meant(use: Use, word: str) -> list[str]:
    if use is Use.weights:
        return []
    if word.strip().lower() in _NEWEST_WORDS:
        return ["checkpoint.resume=auto goes on from the newest checkpoint in run_dir"]
    if word.strip().lower() in _FRESH_WORDS:
        return ["checkpoint.resume=never begins anew, in a fresh folder"]
    return []


def check_origin(config: TridentConfig, earlier: TridentConfig | None, run_dir: Path) -> None:
    """Check that the origin that a command names is that of the run in its folder, or can become it. Reads only.

    Args:
        config: the command's config.
        earlier: the config with which the run in the folder was started the last time, if it holds one.
        run_dir: the folder.

    Raises:
        CheckpointError: as `find_origin`, for a run that begins.
        ConfigError: as `find_origin`; or the folder's run has checkpoints, and it began elsewhere.
    """
    store = CheckpointStore(run_dir)
    steps = store.steps()
    if not steps:
        find_origin(config, run_dir)
        return
    named = named_origin(config.checkpoint)
    if named is None or (earlier is not None and named_origin(earlier.checkpoint) == named):
        return
    use, word = named
    if _began_there(use, word, run_dir):
        return
    path = absolute_path(word, use.value)
    own = _own_step(path, store) if use is Use.resumed else None
    if own is None:
        # For example, a step of the run that was pruned.
        is_there = os.path.exists(path)
        raise ConfigError(
            f"run_dir must be a folder without checkpoints to begin from {use.value}={word}"
            f"{'' if is_there else ' (which does not exist)'}, but {run_dir} holds step_{steps[-1]} of a run that did "
            "not begin there",
            hints=[
                f"to go on with that run leave {use.value} out",
                *([f"to begin from {word} set run_dir to another folder"] if is_there else _meant(use, word)),
            ],
        )
    later = [store.path(step) for step in steps if step > own]
    if later:
        raise ConfigError(
            f"checkpoint.resume must not go back in the run's own folder, but {word} is of step {own}, and {run_dir} "
            f"holds {', '.join(path.name for path in later)}",
            hints=[
                "to train on from there beside it, set run_dir to another folder",
                "to go on with the run, leave checkpoint.resume out",
                f"to go back in this folder, move what is later away: mv {' '.join(map(str, later))} ELSEWHERE",
            ],
        )


def _began_there(use: Use, word: str, run_dir: Path) -> bool:
    """Return whether the run's record says that it began from the named checkpoint, by its name or its content."""
    origin = read_origin(run_dir)
    if origin is None or origin.key != use.value:
        return False
    path = absolute_path(word, use.value)
    if str(path) in (origin.named, origin.checkpoint):
        return True
    try:
        return identity(path if is_hf_folder(path) else find_checkpoint(path)[0]) == origin.manifest
    except CheckpointError:
        return False


def _own_step(path: Path, store: CheckpointStore) -> int | None:
    """Return the step of the run's own checkpoint that is named; None if it is not one of its own."""
    if path.resolve() in (store.folder.resolve(), store.run_dir.resolve()):
        return store.steps()[-1]
    try:
        found, manifest = find_checkpoint(path)
    except CheckpointError:
        return None
    return manifest.step if found.resolve().parent == store.folder.resolve() else None


def identity(checkpoint: Path) -> str:
    """Return what identifies a checkpoint, or the model in a Hugging Face folder, wherever it lies.

    Raises:
        CheckpointError: it cannot be read.
    """
    if is_hf_folder(checkpoint):
        return hf_identity(checkpoint)
    try:
        return file_facts(checkpoint / MANIFEST).blake2b
    except OSError as error:
        raise CheckpointError(f"{checkpoint / MANIFEST} must be readable, but: {error}") from error


def lineage(run_dir: Path) -> Mapping[str, object]:
    """Return the summary's entries about a run's checkpoints: the newest one's step, and the run's origin."""
    steps = CheckpointStore(run_dir).steps()
    origin = read_origin(run_dir)
    newest = {"checkpoint": steps[-1] if steps else None}
    return newest if origin is None else {**newest, "began_from": asdict(origin)}


def check_model(path: Path, here: ModelConfig, use: Use) -> None:
    """Check that a checkpoint's weights belong to this model: that both configs describe the same one.

    Weights alone may be those of a model without adapters, which are added then.

    Raises:
        CheckpointError: they belong to another one, or its config cannot be read.
        ConfigError: they are of a Hugging Face folder whose config cannot be read.
    """
    saved = read_hf_model(path, Use.weights.value).model if is_hf_folder(path) else saved_config(path / CONFIG).model
    if use is Use.weights and saved.lora.rank is None:
        here = without_lora(here)
    changed = changed_keys(saved, here)
    if changed:
        found = ", ".join(f"model.{key}={shown_value(there)}" for key, (there, _) in changed.items())
        wanted = ", ".join(shown_value(mine) for _, mine in changed.values())
        raise CheckpointError(
            f"{path} must be of this model, but was trained with {found} (here {wanted}); give model.* the values of "
            "the run that saved it",
            hints=[f"trident export {path} DST --merged adds its adapters to the weights; begin with DST"]
            if saved.lora.rank is not None and use is Use.weights
            else [],
        )


def check_optimizer(path: Path, here: OptimizerConfig, use: Use) -> None:
    """Check that a checkpoint has what this optimizer keeps, unless only its weights are used.

    Raises:
        CheckpointError: it was trained by another rule, or without an average of its weights.
    """
    if use is Use.weights:
        return
    saved = saved_config(path / CONFIG).optimizer
    hints = [f"to begin with its weights alone, at step 1, give {Use.weights.value}={path}"]
    if saved.kind is not here.kind:
        raise CheckpointError(
            f"{path} must hold the moments of optimizer.kind={here.kind.value}, but was trained with "
            f"{saved.kind.value}; set optimizer.kind={saved.kind.value}",
            hints,
        )
    if here.ema_decay is not None and saved.ema_decay is None:
        raise CheckpointError(
            f"{path} must hold an average of its weights for optimizer.ema_decay, but was trained without one; set "
            "optimizer.ema_decay=null",
            hints,
        )
