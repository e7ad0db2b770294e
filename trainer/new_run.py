"""The folder of a run that is made whole from somewhere else, with one checkpoint in it, or not at all. No torch."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from trainer.checkpoint.kept_tokenizer import write_kept, write_tokenizer
from trainer.checkpoint.manifest import MANIFEST, FileFacts, Manifest, file_facts
from trainer.config.compose import to_yaml
from trainer.config.plan import RunPlan
from trainer.config.schema import TridentConfig
from trainer.description import plan_record
from trainer.errors import ConfigError, StorageError
from trainer.files import own_folder, storage_faults, sync_folder, write_atomically
from trainer.run_folder import RunFolder
from trainer.run_paths import CONFIG, HUGGING_FACE, LATEST, TENSORS

_CHECKPOINT_NAME = re.compile(r"step_[0-9]+|checkpoints")
KEY = "DST"


def check_target(folder: RunFolder, config: TridentConfig) -> None:
    """Check that a run may be made in a folder. Writes nothing.

    Raises:
        ConfigError: there is one, or the folder cannot be one.
    """
    if _CHECKPOINT_NAME.fullmatch(folder.path.name):
        raise ConfigError(
            f"DST must be the folder of a run, in which checkpoints/step_<N> is made, but is {folder.path}; change DST"
        )
    steps = folder.checkpoints.steps()
    # What is written here would take the place of these, and be undone together with them.
    own = (folder.plan, folder.tokenizer, folder.hugging_face, folder.checkpoints.folder / LATEST)
    runs = (folder.config, folder.metrics, *map(folder.checkpoints.path, steps))
    held = [path for path in (*own, *runs) if path.exists()]
    if held:
        raise ConfigError(f"DST must not hold a run yet, but {held[-1]} is there; change DST")
    try:
        folder.check(config)
    except ConfigError as error:
        raise ConfigError([f"DST becomes the run_dir, and {line}" for line in error.problems], error.hints) from error
    except StorageError as error:
        raise StorageError(f"DST becomes the run_dir, and {error}", error.hints) from error


@contextmanager
def making_run(folder: RunFolder, step: int) -> Iterator[Path]:
    """Make the folders of a run with one checkpoint, and yield the checkpoint's: unfinished, with a folder for tensors.

    `publish` makes it appear. If anything fails before, all is undone.

    Raises:
        ConfigError: another process makes a run there, or has made one.
        StorageError: something cannot be written.
    """
    store = folder.checkpoints
    temporary = store.temporary_path(step)
    with ExitStack() as made, storage_faults(folder.path, KEY):
        make_folders(store.folder, made)
        with own_folder(temporary, KEY), ExitStack() as undo:
            undo.callback(shutil.rmtree, temporary, ignore_errors=True)
            # Another process may have made the run since it was checked.
            if store.path(step).exists() or folder.config.exists():
                raise ConfigError(f"{KEY} must not hold a run yet, but {folder.path} does by now; change {KEY}")
            for path in (folder.tokenizer, folder.hugging_face, store.path(step)):
                undo.callback(shutil.rmtree, path, ignore_errors=True)
            for file in (folder.config, folder.plan, store.folder / LATEST):
                undo.callback(file.unlink, missing_ok=True)
            (temporary / TENSORS).mkdir()
            yield temporary
            undo.pop_all()
        made.pop_all()


def publish(
    folder: RunFolder,
    manifest: Manifest,
    plan: RunPlan,
    tensors: Mapping[str, FileFacts],
    tokenizer: Path | None,
    hugging_face: Path | None = None,
) -> None:
    """Write everything of the run but its tensors, and let the checkpoint appear.

    Args:
        folder: the run's folder, being made.
        manifest: the checkpoint's manifest, without files.
        plan: the run's plan.
        tensors: relative path -> size and hash of the files of tensors.
        tokenizer: a tokenizer to copy.
        hugging_face: a folder with the small files of the Hugging Face model that the weights came from.

    Raises:
        StorageError: something cannot be written.
        OSError: as `StorageError`, for `making_run` to tell.
    """
    store, step, config = folder.checkpoints, manifest.step, to_yaml(plan.config)
    temporary = store.temporary_path(step)
    sync_folder(temporary / TENSORS)
    write_atomically(temporary / CONFIG, config, KEY)
    files = {**tensors, CONFIG: file_facts(temporary / CONFIG)}
    if tokenizer is not None:
        files |= write_tokenizer(tokenizer, temporary, KEY)
        folder.keep_tokenizer(tokenizer, KEY)
    if hugging_face is not None:
        files |= write_kept(hugging_face, temporary, HUGGING_FACE, KEY)
        folder.keep_hugging_face(sorted(hugging_face.iterdir()), KEY)
    write_atomically(temporary / MANIFEST, replace(manifest, files=files).to_json(), KEY)
    write_atomically(folder.config, config, KEY)
    write_atomically(folder.plan, json.dumps(plan_record(plan), indent=1) + "\n", KEY)
    store.point_at(step)
    store.publish(step)


def make_folders(folder: Path, undo: ExitStack) -> None:
    """Make a folder with those above it; `undo` removes those that are empty again.

    Raises:
        OSError: one cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir()
        undo.callback(_remove_if_empty, path)
        sync_folder(path.parent)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
