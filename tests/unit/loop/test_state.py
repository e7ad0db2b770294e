from __future__ import annotations

import json

import pytest

from trainer.errors import CheckpointError
from trainer.loop.state import TrainState


def test_state_survives_json() -> None:
    state = TrainState(7, 8 * 2048, 7 * 2048, "a1b2", sample_length=64, stream="c3")
    assert TrainState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", -1),
        ("step", "7"),
        ("step", True),
        ("tokens_seen", 1.5),
        ("sample_ledger", None),
        ("sample_length", 0),
        ("position", -1),
    ],
)
def test_a_wrong_entry_is_named(key: str, value: object) -> None:
    values = {**TrainState(sample_length=8).to_dict(), key: value}
    with pytest.raises(CheckpointError, match=key):
        TrainState.from_dict(values)


def test_a_missing_entry_is_named() -> None:
    with pytest.raises(CheckpointError, match="tokens_seen"):
        TrainState.from_dict({"step": 1, "position": 0, "sample_ledger": "", "sample_length": 8, "stream": ""})
