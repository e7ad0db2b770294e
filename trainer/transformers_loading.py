"""transformers as a library that reads models: quiet, and its faults in words of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.errors import CheckpointError, TridentError, first_line


def quiet_library() -> Any:
    """Return transformers, which tells nothing on the terminal; its own types say less than it returns."""
    import transformers

    library: Any = transformers
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    return library


@contextmanager
def loading(path: Path) -> Iterator[None]:
    """Turn whatever the library raises, and its parts raise, into an error of the model that is loaded.

    Raises:
        CheckpointError: the library cannot load or compute it.
    """
    try:
        yield
    except TridentError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path} must be a model that transformers loads, but: {first_line(error)}") from error


def check_whole(path: Path, told: Mapping[str, Any]) -> None:
    """Check what the library tells of a loading.

    Raises:
        CheckpointError: it has made a tensor up, since it is missing.
    """
    absent = sorted(told["missing_keys"])
    if absent:
        raise CheckpointError(f"{path} must hold every tensor that transformers reads, but {absent[0]} is missing")
