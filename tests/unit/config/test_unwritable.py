"""A file that cannot be made where a key says is told before anything is done for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.config.places import unwritable


def test_a_folder_that_is_missing_or_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unwritable(str(tmp_path / "file"), "output") is None
    told = unwritable(str(tmp_path / "no" / "file"), "output")
    assert told is not None
    assert told.startswith("output must be a file in a folder that exists, but ")
    # Whoever runs the tests may write everywhere.
    monkeypatch.setattr("os.access", lambda *_: False)
    told = unwritable(str(tmp_path / "file"), "samples")
    assert told == f"samples must be a file in a folder that can be written, but {tmp_path} cannot; change samples"
