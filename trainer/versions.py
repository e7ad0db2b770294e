"""Versions of the software that decides a run's numbers. Imports none of it."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import trainer

_GIT_S = 5.0
_PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "tokenizers", "hydra-core", "wandb")
_OF_RANKS = ("torch", "deepspeed", "numpy", "triton", "liger-kernel")


def versions() -> dict[str, str]:
    """Return name -> version of Trident, Python and the packages that are installed."""
    found = {"trident-trainer": trainer.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        if installed := _version(package):
            found[package] = installed
    return found


@cache
def _version(package: str) -> str | None:
    """Return the version of a package. Asked in every save, while no package changes that a process has imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def source_digest(root: Path | None = None) -> str:
    """Return a short hash of Trident's own files as they are on this machine: its code and its configs.

    Args:
        root: the package's folder (default: this one).
    """
    package = root or Path(trainer.__file__).resolve().parent
    configs = next((folder for folder in (package / "conf", package.parent / "conf") if folder.is_dir()), package)
    files = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    files |= {f"conf/{path.relative_to(configs).as_posix()}": path for path in configs.rglob("*.yaml")}
    found = hashlib.blake2b(digest_size=6)
    for name, path in sorted(files.items()):
        content = path.read_bytes()
        found.update(f"{name} {len(content)} ".encode())
        found.update(content)
    return found.hexdigest()


def rank_versions() -> dict[str, str]:
    """Return name -> version of the software by which ranks compute and communicate; all ranks must have the same."""
    found = {
        "the version of trident": f"{trainer.__version__} (files {source_digest()})",
        # Its last number changes no format and no library.
        "the version of python": ".".join(platform.python_version_tuple()[:2]),
    }
    for package in _OF_RANKS:
        found[f"the version of {package}"] = _version(package) or "not installed"
    return found


def source_commit(root: Path | None = None) -> dict[str, object]:
    """Return `commit` and `has_changes` of the running source tree; empty if there is none, or no git to ask.

    Args:
        root: the tree's folder (default: the folder that holds this package).
    """
    root = root or Path(trainer.__file__).resolve().parent.parent
    # An installed package may lie below somebody else's repository.
    if not (root / ".git").exists():
        return {}
    try:
        commit = _git(root, "rev-parse", "HEAD").strip()
        return {"commit": commit, "has_changes": bool(_git(root, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def _git(root: Path, *words: str) -> str:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-C", str(root), *words]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_GIT_S, check=True
    )
    return done.stdout
