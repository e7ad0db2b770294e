from __future__ import annotations

import json
import math
from pathlib import Path

from trainer.loop.events import SkippedBatch
from trainer.metrics.skipped import SkippedBatchesSink


def test_each_batch_is_a_line_that_json_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "skipped.jsonl"
    file = SkippedBatchesSink(path)
    assert not path.parent.exists()
    file.skip(SkippedBatch(3, 512, (7, 1), math.nan, math.inf))
    file.skip(SkippedBatch(4, 768, (2,), 9.5, 9.0))
    file.skip(SkippedBatch(5, 1024, (3,), math.nan, 9.0, is_empty=True))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 3, "reason": "not finite", "loss": None, "limit": None, "position": 512, "samples": [7, 1]},
        {"step": 4, "reason": "spike", "loss": 9.5, "limit": 9.0, "position": 768, "samples": [2]},
        {"step": 5, "reason": "empty", "loss": None, "limit": 9.0, "position": 1024, "samples": [3]},
    ]
