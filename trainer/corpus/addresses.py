"""Files elsewhere, `https://`, `s3://`, `hf://` and the like, through `fsspec` and the driver of each. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trainer.corpus.wording import reason
from trainer.errors import DataError

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://")
_WEB = ("http", "https")
_MARKS = ("ETag", "etag", "blob_id", "mtime", "LastModified", "last_modified", "created", "generation")
"""Facts by which places say that a file is another one; the first that there is counts."""
_GLOB = re.compile(r"[*?\[]")


def is_address(path: str) -> bool:
    """Return whether a path is the address of a place elsewhere."""
    return _SCHEME.match(path) is not None


def listed_address(pattern: str) -> dict[str, tuple[int | None, str]] | None:
    """Return address -> (size, a text that changes when the file does) of what an address or glob names.

    Folders are looked through. The place is asked once. A size is None if it is not told, or if reading cannot begin
    in the middle.

    Returns:
        What was found; None if the address is a folder, or a glob, that holds nothing.

    Raises:
        DataError: the place cannot be reached, or the package that reaches it is not installed.
    """
    place, path = _place(pattern)
    try:
        # A name that exists is taken literally; the web has queries, and no folders.
        is_glob = _GLOB.search(path) is not None and _scheme(pattern) not in _WEB
        if is_glob:
            found = place.glob(path, detail=True)
        else:
            facts = place.info(path)
            found = place.find(path, detail=True) if facts.get("type") == "directory" else {path: facts}
    # Drivers raise whatever their transport raises.
    except Exception as error:
        # That of the web says so of a server that does not answer, too.
        cause = error.__cause__ or error if isinstance(error, FileNotFoundError) else error
        if isinstance(cause, FileNotFoundError):
            return None
        raise DataError(
            f"data.files must name files that can be reached, but {pattern} cannot: {type(cause).__name__}: "
            f"{reason(cause)}"
        ) from error
    files = {path: facts for path, facts in found.items() if facts.get("type", "file") == "file"}
    addresses = {pattern: files[path]} if path in files else _addresses(place, files)
    return {address: _facts(address, facts) for address, facts in addresses.items()} or None


def open_address(address: str) -> Any:
    """Return a file elsewhere, opened for reading bytes.

    Raises:
        DataError: the package that reaches it is not installed.
    """
    place, path = _place(address)
    if _scheme(address) in _WEB:
        # As a stream: many servers cannot begin in the middle.
        return place.open(path, "rb", block_size=0)
    return place.open(path, "rb")


def _addresses(place: Any, files: Mapping[str, Any]) -> dict[str, Any]:
    return {str(place.unstrip_protocol(path)): facts for path, facts in files.items()}


def _facts(address: str, facts: Mapping[str, Any]) -> tuple[int | None, str]:
    size = facts.get("size")
    mark = next((str(facts[name]) for name in _MARKS if facts.get(name)), "")
    can_seek = _scheme(address) not in _WEB
    return (int(size) if size is not None and can_seek else None), f"{address}:{size}:{mark}"


def _scheme(address: str) -> str:
    match = _SCHEME.match(address)
    return match[1].lower() if match else ""


def _place(address: str) -> tuple[Any, str]:
    import fsspec

    try:
        place, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise DataError(
            f"data.files={address} needs a package that is not installed: {reason(error)}; install it with pip, or "
            "copy the files to this machine"
        ) from error
    except ValueError as error:
        raise DataError(
            f"data.files must be paths or addresses like s3://bucket/x.jsonl, but {address} is not: {reason(error)}"
        ) from error
    return place, str(path)
