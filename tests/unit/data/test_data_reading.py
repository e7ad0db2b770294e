"""Reading at random: as fast as memory, and opened without looking at what is there."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.helpers.shards import shard_set
from trainer.data.dataset import Boundaries, TokenDataset

SEQ_LENGTH = 128
CONSUMED = 300
"""Samples a second that gpt_debug takes at most on two cores: 16 a step, of at least 50 ms."""

OPENING = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
from trainer.data.dataset import TokenDataset
from trainer.data.sampler import SampleOrder
from trainer.data.shard_set import ShardSet
from trainer.data.token_manifest import Shard

folder, shards, tokens = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
def used():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
before, began = used(), time.perf_counter()
described = [Shard(f"{n}.bin", "uint16", 0, tokens, 0, 0, None, "", "none") for n in range(shards)]
dataset = TokenDataset(ShardSet(folder, described), 8)
order = SampleOrder(len(dataset), 7)
first = order.samples(0, 100)
opened = time.perf_counter() - began
samples = [dataset.sample(int(one)) for one in order.samples(10**8, 200)]
far = order.samples(len(dataset) - 5, 10)
print(json.dumps({"samples": len(dataset), "opened": opened, "bytes": used() - before,
    "distinct": len(set(first.tolist())), "far": len(set(far.tolist()))}))
"""


def test_an_epoch_of_a_billion_samples_opens_at_once(tmp_path: Path) -> None:
    shards, tokens = 8, 10**9
    for number in range(shards):
        with (tmp_path / f"{number}.bin").open("wb") as file:
            # Sparse: it takes no room.
            file.truncate(2 * tokens)
    command = [sys.executable, "-c", OPENING, str(tmp_path), str(shards), str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found = json.loads(done.stdout)
    assert found["samples"] == (shards * tokens - 1) // 8
    assert found["opened"] < 2.0
    assert found["bytes"] < 100 << 20
    assert (found["distinct"], found["far"]) == (100, 10)


def test_random_samples_are_read_far_faster_than_a_small_model_takes_them(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    tokens = generator.integers(0, 50_000, 4_000_000)
    documents = np.split(tokens, np.sort(generator.choice(len(tokens), 8_000, replace=False)))
    shards = shard_set(tmp_path, documents)
    for boundaries in (None, Boundaries(is_told=True, crossing_label=-100)):
        dataset = TokenDataset(shards, SEQ_LENGTH, boundaries=boundaries)
        places = generator.integers(0, len(dataset), 2_000).tolist()
        rates = []
        # The best of some turns: other processes may slow one.
        for _ in range(5):
            began = time.perf_counter()
            for place in places:
                dataset.rows(place)
            rates.append(len(places) / (time.perf_counter() - began))
        # Documents are found by two searches in their index. Both are several times as fast on an idle machine.
        assert max(rates) > (50 if boundaries is None else 10) * CONSUMED, rates
