"""The checkpoints of a run: find, order, delete, and point at the newest. No torch."""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from pathlib import Path

from trainer.checkpoint.manifest import MANIFEST, Manifest, check_sizes, read_manifest
from trainer.errors import CheckpointError
from trainer.files import sync_folder, write_atomically
from trainer.log import warn
from trainer.run_paths import CHECKPOINTS, LATEST, run_of_checkpoint

_NAME = re.compile(r"step_(0|[1-9][0-9]*)")


class CheckpointStore:
    """The folder `run_dir/checkpoints`."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.folder = run_dir / CHECKPOINTS

    def path(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return self.folder / f"step_{step}"

    def temporary_path(self, step: int) -> Path:
        """Return the folder in which a checkpoint is written before it is whole."""
        return self.folder / f".step_{step}.partial"

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, ascending. Names that this class would not give are not ours."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        names = (_NAME.fullmatch(path.name) for path in found if path.is_dir())
        return sorted(int(name[1]) for name in names if name is not None)

    def newest_valid(self) -> tuple[Path, Manifest] | None:
        """Return the newest checkpoint whose files are all there, warning about each newer one that is not."""
        for step in reversed(self.steps()):
            path = self.path(step)
            try:
                manifest = read_manifest(path)
                check_sizes(path, manifest)
            except CheckpointError as error:
                warn(f"skipping a damaged checkpoint: {error}")
                continue
            return path, manifest
        return None

    def publish(self, step: int) -> None:
        """Give the checkpoint at `temporary_path` its name, durably; an earlier one of the same step is deleted.

        Raises:
            OSError: it cannot be renamed; the earlier one of the same step stays.
        """
        final, replaced = self.path(step), self.folder / f".step_{step}.replaced.partial"
        shutil.rmtree(replaced, ignore_errors=True)
        is_there = final.exists()
        if is_there:
            # Deleting takes long; until the new one has the name, the old one is only renamed.
            final.rename(replaced)
        try:
            self.temporary_path(step).rename(final)
        except OSError:
            if is_there:
                replaced.rename(final)
            raise
        sync_folder(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)

    def point_at(self, step: int) -> None:
        """Make `latest` name a step."""
        write_atomically(self.folder / LATEST, f"step_{step}\n")

    def set_aside_after(self, step: int) -> list[Path]:
        """Rename the checkpoints of later steps, and return their new paths.

        Only damaged ones are later than the one that a run goes on from. It trains these steps anew, so they must not
        be taken for newer ones; but they are not ours to delete: another disk may still read them.
        """
        later = [self.path(found) for found in self.steps() if found > step]
        return [path.rename(self._unused(f"{path.name}.damaged")) for path in later]

    def _unused(self, name: str) -> Path:
        names = (name, *(f"{name}.{number}" for number in range(2, 10**6)))
        return next(path for path in map(self.folder.joinpath, names) if not path.exists())

    def delete_old(self, keep: int, keep_every: int = 0) -> None:
        """Delete checkpoints that need not be kept, and all that are half written or half deleted.

        The newest `keep` whole ones stay, damaged ones among them too, and multiples of `keep_every` unless it is 0.
        """
        whole = 0
        for step in reversed(self.steps()):
            if whole >= keep and not (keep_every > 0 and step % keep_every == 0):
                self._delete(step)
            elif whole < keep:
                whole += self._is_whole(step)
        for partial in self.folder.glob(".step_*.partial"):
            shutil.rmtree(partial, ignore_errors=True)

    def _is_whole(self, step: int) -> bool:
        try:
            check_sizes(self.path(step), read_manifest(self.path(step)))
        except CheckpointError:
            return False
        return True

    def _delete(self, step: int) -> None:
        # Hidden first: a run that dies while it deletes leaves nothing that looks like a damaged checkpoint.
        hidden = self.folder / f".step_{step}.deleted.partial"
        shutil.rmtree(hidden, ignore_errors=True)
        with suppress(OSError):
            self.path(step).rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def find_checkpoint(path: Path) -> tuple[Path, Manifest]:
    """Return the checkpoint at `path`: itself, the newest valid one of a run folder, or the one that `latest` names.

    Raises:
        CheckpointError: there is none, or the named one is damaged.
    """
    if path.name == LATEST and path.is_file():
        path = _followed(path)
    if not path.exists():
        raise CheckpointError(f"{path} must be a run folder or a checkpoint, but does not exist", _beside(path))
    if not path.is_dir():
        hints = [f"first: trident import {path} DST, and then take that folder"] if path.suffix == ".gguf" else []
        raise CheckpointError(f"{path} must be the folder of a run or of a checkpoint, but is a file", hints=hints)
    if (path / MANIFEST).is_file() or _NAME.fullmatch(path.name):
        manifest = read_manifest(path)
        check_sizes(path, manifest)
        return path, manifest
    run_dir = path.parent if path.name == CHECKPOINTS else path
    found = CheckpointStore(run_dir).newest_valid()
    if found is None:
        raise CheckpointError(f"{path} must hold a whole checkpoint (checkpoints/step_<N>), but holds none")
    return found


def _followed(latest: Path) -> Path:
    """Return the checkpoint that the file `latest` points at."""
    try:
        name = latest.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{latest} must be readable, but: {error}") from error
    if not _NAME.fullmatch(name):
        raise CheckpointError(f"{latest} must name a checkpoint beside it (step_<N>), but says {name[:80]!r}")
    return latest.parent / name


def _beside(path: Path) -> list[str]:
    """Return a hint that names the checkpoints near the path."""
    run = run_of_checkpoint(path)
    steps = CheckpointStore(run.path).steps() if run is not None else []
    return [f"{path.parent} holds {', '.join(f'step_{step}' for step in steps[-8:])}"] if steps else []
