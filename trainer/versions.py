"""The versions of what decides a run's numbers. Imports none of it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import trainer

_PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "tokenizers", "hydra-core", "wandb")


def versions() -> dict[str, str]:
    """Return name -> version of Trident, Python and the packages that are installed."""
    found = {"trident-trainer": trainer.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
