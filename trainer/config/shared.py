"""Keys on which the configs of the ranks of one run must agree, and those on which they may differ. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.config.compose import Composition
from trainer.config.keys import KEYS, build, flatten
from trainer.config.places import PATHS, PER_NODE, PLAIN, absolute_path
from trainer.config.schema import TridentConfig
from trainer.config.written import plain

OWN: Mapping[str, str] = {
    "data.files": "where a node has its copy of the data; the tokens must be the same, which is checked on them",
    "data.validation_files": "where a node has its copy of them; the tokens must be the same, which is checked on them",
    "data.hub_path": "where a node has its copy of the data; the tokens must be the same, which is checked on them",
    "tokenizer.path": "where a node has its copy of the tokenizer; tokens must be the same, which is checked on them",
    "data.cache_dir": "where a node keeps its tokens; they must be the same, which is checked on them",
    "data.workers": "how many processors a node has; its tokens are the same, which is checked on them",
    "zero.nvme_path": "the local disk of a node that holds its own part of the optimizer state",
    "runtime.threads_per_rank": "how many processors a node has; no other rank waits for, or sees, more than results",
}
"""Keys that ranks may differ in -> why that does not matter. All other keys must be the same."""
_SHARED_PATHS = tuple(key for key in PATHS if key not in PER_NODE)
_NO_PATHS = ("auto", "never", PLAIN)


def shared_values(found: Composition) -> dict[str, tuple[object, object]]:
    """Return key -> (plain value, how it was written) of every key that must be the same on all ranks.

    A path is made absolute: a relative one, or one below a home folder, may be another folder for each rank. The value
    of an environment variable counts as not written.

    Raises:
        ConfigError: a path is below a home folder that does not exist.
    """
    written = {**found.unresolved, **found.of_environment}
    return {
        # In a list, because None is a way to write a value, too.
        key: (_whole_path(key, plain(value)), [written[key]])
        for key, value in flatten(found.config).items()
        if key not in OWN
    }


def with_shared(config: TridentConfig, taken: Mapping[str, object]) -> TridentConfig:
    """Return the config with the plain values of some keys replaced."""
    return build({**{key: plain(value) for key, value in flatten(config).items()}, **taken})


def _whole_path(key: str, value: object) -> object:
    if key in _SHARED_PATHS and isinstance(value, str) and value not in _NO_PATHS:
        return str(absolute_path(value, key))
    return value


assert set(PER_NODE) < set(OWN) <= set(KEYS), "each key that nodes may differ in has its reason"
