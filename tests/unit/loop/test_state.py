from __future__ import annotations

import json

import pytest

from trainer.errors import CheckpointError
from trainer.loop.state import TrainState


def test_state_survives_json() -> None:
    state = TrainState(7, 8 * 2048, 7 * 2048, "a1b2", sample_length=64, stream="c3")
    state.skipped_batches, state.skipped_in_row, state.recent_losses = 5, 2, [0.1 + 0.2, 1e-300, 3.0]
    assert TrainState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


def test_a_state_becomes_another_in_place() -> None:
    state, other = TrainState(9, sample_length=64), TrainState(7, 8, 6, "a1", sample_length=32, stream="c3")
    state.recent_losses, other.recent_losses, other.skipped_batches = [9.0], [1.0, 2.0], 5
    losses = state.recent_losses
    state.become(other)
    assert state == other
    assert state.recent_losses is losses
    other.recent_losses.append(3.0)
    assert losses == [1.0, 2.0]
    state.become(state)
    assert losses == [1.0, 2.0]


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
        ("skipped_in_row", -1),
        ("recent_losses", [1.0, float("nan")]),
        ("recent_losses", [1]),
    ],
)
def test_a_wrong_entry_is_named(key: str, value: object) -> None:
    values = {**TrainState(sample_length=8).to_dict(), key: value}
    with pytest.raises(CheckpointError, match=key):
        TrainState.from_dict(values)


def test_a_missing_entry_is_named() -> None:
    with pytest.raises(CheckpointError, match="tokens_seen"):
        TrainState.from_dict({"step": 1, "position": 0, "sample_ledger": "", "sample_length": 8, "stream": ""})


def test_a_checkpoint_of_before_batches_were_skipped_can_be_read() -> None:
    state = TrainState(3, 64, 64, "a", sample_length=8, stream="s")
    old = {key: value for key, value in state.to_dict().items() if "skipped" not in key and key != "recent_losses"}
    assert TrainState.from_dict(old) == state
