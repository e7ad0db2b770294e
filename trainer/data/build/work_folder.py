"""The folder in which the units of a cache folder are done, by any number of processes and machines. No torch.

A finished unit is a file that appears whole. Who did it does not matter, since all write the same bytes: nothing is
locked here, and a kill at any moment leaves what is finished.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.data.build.unit_result import UNFINISHED, UnitResult
from trainer.data.shared_cache import host, is_left_behind, share
from trainer.files import write_atomically
from trainer.machine import this_machine

BEAT_S = 5.0
"""Seconds between two signs of life of a node."""
LOST_S = 60.0
"""Age in seconds of a node's last sign of life from which on others do its share."""
_RESULT = re.compile(r"u(\d{9})\.(\d{6})")
_LAST = re.compile(r"u(\d{9})\.blocks")
SPOOL = ".spool"
_KEY = "data.cache_dir"


class WorkFolder:
    """The files of the units of one cache folder.

    Args:
        path: the folder.
        may_skip: False if results of which records were skipped do not count.
    """

    def __init__(self, path: Path, may_skip: bool = True) -> None:
        self.path = path
        self._may_skip = may_skip
        self._beat_at = 0.0

    @classmethod
    def beside(cls, folder: Path, may_skip: bool) -> WorkFolder:
        """Return the folder for a cache folder; one of this user's own where another user's is closed to this one."""
        path = folder.with_name(f".{folder.name}.work")
        if path.exists() and not os.access(path, os.W_OK | os.X_OK | os.R_OK):
            path = path.with_name(f"{path.name}-{os.geteuid()}")
        return cls(path, may_skip)

    def make(self) -> None:
        """Make the folder, if it is not there.

        Raises:
            OSError: it cannot be made.
        """
        self.path.mkdir(exist_ok=True)
        share(self.path)

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer that all workers use; it appears whole."""
        return self.path / "tokenizer"

    @contextmanager
    def making_tokenizer(self) -> Iterator[Path]:
        """Make a folder whose content becomes the tokenizer, unless another process was faster.

        Raises:
            OSError: it cannot be made.
        """
        made = self.path / f".tokenizer.{host()}.{secrets.token_hex(6)}{UNFINISHED}"
        made.mkdir()
        try:
            yield made
            share(made)
            try:
                made.rename(self.tokenizer)
            except OSError:
                if not self.tokenizer.is_dir():
                    raise
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def result(self, number: int, block: int = 0) -> Path:
        """Return the path of the results of a unit, or of a block of one that is fed."""
        return self.path / f"u{number:09d}.{block:06d}"

    def spool(self, number: int, block: int) -> Path:
        """Return a new path for the documents of a block that wait for a worker of this node."""
        return self.path / f"u{number:09d}.{block:06d}.{host()}.{secrets.token_hex(6)}{SPOOL}"

    def note_blocks(self, number: int, blocks: int) -> None:
        """Note that a unit that is fed has these many blocks.

        Raises:
            StorageError: it cannot be written.
        """
        path = self.path / f"u{number:09d}.blocks"
        write_atomically(path, str(blocks), _KEY)
        share(path)

    def finished(self) -> tuple[set[tuple[int, int]], dict[int, int]]:
        """Return the (unit, block) that are finished, and unit -> number of its blocks, where that is known."""
        done: set[tuple[int, int]] = set()
        blocks: dict[int, int] = {}
        with suppress(FileNotFoundError), os.scandir(self.path) as entries:
            for entry in entries:
                if match := _RESULT.fullmatch(entry.name):
                    done.add((int(match[1]), int(match[2])))
                elif match := _LAST.fullmatch(entry.name):
                    with suppress(OSError, ValueError):
                        blocks[int(match[1])] = int(Path(entry.path).read_text())
        return done, blocks

    def open_result(self, number: int, block: int) -> UnitResult | None:
        """Return the results of a unit; None if they are missing or do not count: then they are removed."""
        path = self.result(number, block)
        found = UnitResult.open(path)
        if found is not None and (self._may_skip or not found.facts.skipped):
            return found
        with suppress(OSError):
            path.unlink()
        return None

    def beat(self, node: int) -> None:
        """Let other nodes see, now and then, that this one works."""
        now = time.monotonic()
        if now - self._beat_at < BEAT_S:
            return
        self._beat_at = now
        with suppress(OSError):
            (self.path / f"node{node}.alive").write_text(f"{this_machine()} {os.getpid()} {_started(str(os.getpid()))}")

    def lives(self, node: int, own: int) -> bool:
        """Return whether another node has shown a sign of life lately, by the clock of the disk, and is not known gone."""
        try:
            theirs, ours = ((self.path / f"node{one}.alive").stat().st_mtime for one in (node, own))
            who = (self.path / f"node{node}.alive").read_text(errors="replace").split()
        except OSError:
            return False
        # On this machine a process can be looked for.
        is_gone = len(who) == 3 and who[0] == this_machine() and who[2] != _started(who[1])
        return ours - theirs < LOST_S and not is_gone

    def remove_unfinished(self) -> None:
        """Remove what killed processes of this machine left half done. None of them may be working here."""
        for path in (*self.path.glob(f".*{UNFINISHED}"), *self.path.glob(f"*{SPOOL}")):
            if f".{host()}." not in path.name and not is_left_behind(path):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
                continue
            with suppress(OSError):
                path.unlink()

    def remove(self) -> None:
        """Remove everything: the shards are made."""
        shutil.rmtree(self.path, ignore_errors=True)

    def remove_if_empty(self) -> None:
        """Remove everything unless a unit is finished."""
        if not self.finished()[0]:
            self.remove()



def _started(pid: str) -> str | None:
    """Return when a process of this machine was started, as the kernel counts; None if it is gone."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    # A zombie's parent has not asked for its exit code yet.
    return None if facts[0] == "Z" else facts[19]
