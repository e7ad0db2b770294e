"""Weights are read from a checkpoint of Trident's, or from a Hugging Face folder as it is. No torch."""

from __future__ import annotations

from pathlib import Path

from trainer.checkpoint.kept_tokenizer import saved_config
from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.store import find_checkpoint
from trainer.config.hf_folder import hf_identity, is_hf_folder, read_hf_model
from trainer.config.places import absolute_path
from trainer.config.schema import ModelConfig
from trainer.interchange.weight_index import weight_files
from trainer.loop.state import TrainState
from trainer.run_paths import CONFIG


def find_readable(word: str, key: str) -> tuple[Path, Manifest]:
    """Return the checkpoint or Hugging Face folder that a user names; the latter with what stands for a manifest.

    Raises:
        CheckpointError: there is none, or it is damaged.
        ConfigError: it is a Hugging Face folder whose model cannot be computed.
    """
    path = absolute_path(word, key)
    return (path, foreign_manifest(path, key)) if is_hf_folder(path) else find_checkpoint(path)


def foreign_manifest(folder: Path, key: str) -> Manifest:
    """Return what stands for the manifest of a Hugging Face folder.

    Args:
        folder: the folder.
        key: the key or word that names it; errors name it.

    Raises:
        CheckpointError: weights are missing.
        ConfigError: the model cannot be computed.
    """
    model = read_hf_model(folder, key).model
    weight_files(folder)
    state = TrainState(sample_length=model.seq_length).to_dict()
    return Manifest(0, model.vocab_size or 0, state, {}, None, {"hugging_face": hf_identity(folder)}, {}, {})


def model_in(path: Path, key: str) -> ModelConfig:
    """Return the model of a checkpoint or of a Hugging Face folder.

    Raises:
        CheckpointError: the checkpoint's config cannot be read.
        ConfigError: the folder's model cannot be computed.
    """
    return read_hf_model(path, key).model if is_hf_folder(path) else saved_config(path / CONFIG).model
