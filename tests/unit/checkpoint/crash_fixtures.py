"""A file system that loses what was not synced: records what a program does, and tells what a crash may leave of it.

The model is POSIX's: the content of a file is safe when the file was synced, a name when its folder was. What was not
synced may have reached the disk or not, each folder for itself; a renaming never is half done. Content that was not
synced is gone, cut short, zeros, or there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

Operation = tuple[str, ...]
"""(what, path) or (rename, from, to); a `write` is followed by its content in `Recording.contents`."""
Tree = dict[str, bytes | None]
"""Path -> content, None for a folder."""


def tree_of(root: Path) -> Tree:
    """Return everything below a folder."""
    found: Tree = {}
    for path in sorted(root.rglob("*")):
        found[path.relative_to(root).as_posix()] = None if path.is_dir() else path.read_bytes()
    return found


def plant(root: Path, tree: Tree) -> None:
    """Make a folder hold what a tree says."""
    root.mkdir(parents=True)
    for name, content in sorted(tree.items()):
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)


@dataclass
class Recording:
    """What was done below `root`, in order."""

    root: Path
    before: Tree
    operations: list[Operation] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    _seen: Tree = field(default_factory=dict)

    def note_writes(self) -> None:
        """Add what was written since the last operation."""
        now = tree_of(self.root)
        for name, content in now.items():
            if content is not None and self._seen.get(name, None) != content:
                self.operations.append(("write", name))
                self.contents.append(content)
        self._seen = now

    def done(self, *operation: str) -> None:
        """Add an operation that was done, and look again, so that its effect is not taken for a write."""
        if operation:
            self.operations.append(operation)
        self._seen = tree_of(self.root)


def _where(root: Path, path: object, dir_fd: int | None = None) -> str | None:
    """Return a path relative to the root, or None outside of it."""
    name = os.fsdecode(os.fspath(path))  # type: ignore[call-overload]
    if dir_fd is not None:
        name = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), name)
    return os.path.relpath(name, root) if Path(name).is_relative_to(root) else None


@contextmanager
def record(root: Path) -> Iterator[Recording]:
    """Record what happens below `root`. Writes are seen at the next other operation, whoever made them."""
    recording = Recording(root, tree_of(root))
    recording.done()
    originals: dict[str, Callable[..., object]] = {}

    def one(what: str) -> Callable[..., object]:
        def wrapped(path: object, *args: object, dir_fd: int | None = None, **kwargs: object) -> object:
            found = _where(root, path, dir_fd)
            recording.note_writes()
            more = {} if dir_fd is None else {"dir_fd": dir_fd}
            result = originals[what](path, *args, **more, **kwargs)
            recording.done(*(() if found is None else (what, found)))
            return result

        return wrapped

    def fsync(handle: int) -> None:
        found = _where(root, os.readlink(f"/proc/self/fd/{handle}"))
        recording.note_writes()
        originals["fsync"](handle)
        recording.done(*(() if found is None else ("fsync", found)))

    def rename(what: str) -> Callable[..., object]:
        def wrapped(source: object, target: object) -> None:
            a, b = _where(root, source), _where(root, target)
            recording.note_writes()
            originals[what](source, target)
            recording.done(*(() if a is None or b is None else ("rename", a, b)))

        return wrapped

    wrappers: dict[str, Callable[..., object]] = {name: one(name) for name in ("mkdir", "unlink", "rmdir")}
    wrappers |= {name: rename(name) for name in ("rename", "replace")} | {"fsync": fsync}
    originals |= {name: getattr(os, name) for name in wrappers}
    with ExitStack() as patches:
        for name, wrapper in wrappers.items():
            patches.enter_context(mock.patch.object(os, name, wrapper))
        yield recording
        recording.note_writes()


@dataclass
class _Folder:
    live: dict[str, _Folder | _File] = field(default_factory=dict)
    durable: dict[str, _Folder | _File] = field(default_factory=dict)


@dataclass
class _File:
    live: bytes = b""
    durable: bytes | None = None
    was_written: bool = False


class Disk:
    """A disk in memory, at one moment of a recording."""

    def __init__(self, recording: Recording, moment: int) -> None:
        self._root = _Folder()
        for name, content in recording.before.items():
            parent, last = self._parent(name)
            parent.live[last] = _Folder() if content is None else _File(content, content)
            parent.durable[last] = parent.live[last]
        contents = iter(recording.contents)
        for operation in recording.operations[:moment]:
            self._apply(operation, contents)

    def _parent(self, name: str) -> tuple[_Folder, str]:
        *folders, last = name.split("/")
        found = self._root
        for folder in folders:
            inner = found.live[folder]
            assert isinstance(inner, _Folder)
            found = inner
        return found, last

    def _apply(self, operation: Operation, contents: Iterator[bytes]) -> None:
        what, name = operation[:2]
        parent, last = (self._root, ".") if name == "." else self._parent(name)
        node = self._root if name == "." else parent.live.get(last)
        if what == "write":
            file = node if isinstance(node, _File) else _File()
            file.live, file.was_written = next(contents), True
            parent.live[last] = file
        elif what == "mkdir":
            # It may be there already: `exist_ok`.
            parent.live.setdefault(last, _Folder())
        elif what in ("unlink", "rmdir"):
            parent.live.pop(last, None)
        elif what == "rename":
            target, new = self._parent(operation[2])
            target.live[new] = parent.live.pop(last)
        elif isinstance(node, _Folder):
            node.durable = dict(node.live)
        elif isinstance(node, _File):
            node.durable = node.live

    def _dirty(self) -> list[_Folder]:
        found, folders = [], [self._root]
        for folder in folders:
            folders += [inner for inner in folder.live.values() if isinstance(inner, _Folder)]
            if folder.live != folder.durable:
                found.append(folder)
        return found

    def crashes(self) -> Iterator[Tree]:
        """Yield what a crash now may leave."""
        dirty = self._dirty()
        written: list[Sequence[_Folder]] = [[], dirty, *([folder] for folder in dirty)]
        written += [[other for other in dirty if other is not folder] for folder in dirty]
        for folders in written:
            for content in (_gone, _cut_short, _zeros, _there):
                yield self._tree([id(folder) for folder in folders], content)

    def lies(self) -> Iterator[Tree]:
        """Yield what is left when the disk said of one file that it was synced, but has zeros in its place."""
        for file in self._files(self._root):
            if file.was_written and file.live:
                safe, file.durable = file.durable, None
                yield self._tree([id(folder) for folder in self._dirty()], _zeros)
                file.durable = safe

    def _files(self, folder: _Folder) -> Iterator[_File]:
        for inner in folder.live.values():
            if isinstance(inner, _File):
                yield inner
            else:
                yield from self._files(inner)

    def _tree(self, written: Sequence[int], content: Callable[[_File], bytes]) -> Tree:
        tree: Tree = {}

        def walk(folder: _Folder, prefix: str) -> None:
            entries: Mapping[str, _Folder | _File] = folder.live if id(folder) in written else folder.durable
            for name, inner in entries.items():
                if isinstance(inner, _Folder):
                    tree[prefix + name] = None
                    walk(inner, f"{prefix}{name}/")
                else:
                    tree[prefix + name] = inner.live if inner.durable == inner.live else content(inner)

        walk(self._root, "")
        return tree


def _gone(file: _File) -> bytes:
    return file.durable or b""


def _cut_short(file: _File) -> bytes:
    return file.live[: len(file.live) // 2]


def _zeros(file: _File) -> bytes:
    return bytes(len(file.live))


def _there(file: _File) -> bytes:
    return file.live
