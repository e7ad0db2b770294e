"""A run that goes on with other data: with appended ones, with other weights, with other sources."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.shards import manifest_of, written_shard
from tests.unit.data.data_fixtures import config
from trainer.data.ledger import ledger_after
from trainer.data.megatron_pair import PairWriter
from trainer.data.picks import Rows
from trainer.data.prepare import prepare
from trainer.data.prepared import PreparedData
from trainer.data.stream_plan import Phase, SourceShare
from trainer.data.streams import WantedStream
from trainer.data.token_files import Packed

S = 4


def wanted(folder: Path, *shards: np.ndarray, packed: Packed | None = None, dtype: str = "uint16") -> WantedStream:
    found = [written_shard(folder, [ids], number=number, dtype=dtype) for number, ids in enumerate(shards)]
    manifest = replace(manifest_of(found, found[:1]), packed=packed)
    return WantedStream(PreparedData(folder, 10**4, manifest, None, "fingerprint"), config(model__seq_length=S))


IDS = np.arange(1000)


@pytest.mark.parametrize(
    ("before", "after", "kept", "new"),
    [
        ([IDS[:41]], [IDS[:41]], 7, 0),
        ([IDS[:41]], [IDS[:62]], 7, 5),
        ([IDS[:41]], [IDS[:41], IDS[41:62]], 7, 5),
        ([IDS[:20], IDS[20:41]], [IDS[:20], IDS[20:62]], 7, 5),
        # Not even a sample more.
        ([IDS[:41]], [IDS[:42]], 7, 0),
        # Other tokens, fewer ones, or the same ones in other shards begin anew.
        ([IDS[:41]], [IDS[1:62]], 0, 0),
        ([IDS[:41]], [IDS[:37]], 0, 0),
        ([IDS[:20], IDS[20:41]], [IDS[:62]], 0, 0),
        ([IDS[:20], IDS[20:41]], [IDS[:21], IDS[21:62]], 0, 0),
    ],
)
def test_appended_tokens_are_known_by_their_hashes(
    tmp_path: Path, before: list[np.ndarray], after: list[np.ndarray], kept: int, new: int
) -> None:
    plan = wanted(tmp_path / "before", *before).begun(S)
    changed = wanted(tmp_path / "after", *after).continued(plan, 3)
    source = changed.segments[-1].sources[0]
    assert (source.kept, source.rest - source.kept) == (kept, new)
    assert (changed.segments[0], changed.segments[-1].first) == (plan.segments[0], 3)


@pytest.mark.parametrize("files", [["a"], ["a", "b"]])
def test_appended_pairs_that_are_read_where_they_lie_are_known(tmp_path: Path, files: list[str]) -> None:
    def found() -> WantedStream:
        keys = {
            "data__source": "megatron",
            "data__validation_fraction": 0.2,
            "data__cache_dir": str(tmp_path / "cache"),
        }
        names = [str(tmp_path / name) for name in files if (tmp_path / f"{name}.bin").exists()]
        asked = config(data__files=names, model__seq_length=S, model__vocab_size=10**4, **keys)
        return WantedStream(prepare(asked), asked)

    def write(name: str, documents: int) -> None:
        with PairWriter(tmp_path / name, "int32") as writer:
            for number in range(documents):
                writer.append(np.arange(number, number + 9))

    write("a", 30)
    before = found()
    assert before.prepared.manifest.parts["train"][0].is_scattered
    plan = before.begun(S)
    write(files[-1], 60)
    source = found().continued(plan, 3).segments[-1].sources[0]
    assert source.kept == plan.segments[0].sources[0].samples - 3
    assert source.rest > source.kept


def test_ids_of_another_width_and_packed_examples_begin_anew(tmp_path: Path) -> None:
    plan = wanted(tmp_path / "a", IDS[:41]).begun(S)
    assert wanted(tmp_path / "b", IDS[:62], dtype="int32").continued(plan, 3).segments[-1].sources[0].rest == 0
    packed = Packed(S, 9, 40, 40, 0, 0, 0)
    folder = tmp_path / "packed"
    found = wanted(folder, IDS[:40], packed=packed)
    shard = found.prepared.manifest.parts["train"][0]
    (folder / shard.name).with_suffix(".marks").write_bytes(bytes(40))
    share = SourceShare("data", "another:20", 5)
    assert not found.continues(share, found.begun(S).segments[0].sources[0])


def test_the_ledger_knows_where_data_change(tmp_path: Path) -> None:
    plan = wanted(tmp_path / "a", IDS[:41]).begun(S)
    changed = wanted(tmp_path / "b", IDS[:62]).continued(plan, 3)
    assert plan.begun_between(0, 10**9) == []
    assert changed.begun_between(0, 3 * S) == changed.begun_between(3 * S + 1, 10**9) == []
    assert [one["first"] for one in changed.begun_between(3 * S, 3 * S + 1)] == [3]
    ids = np.arange(8).reshape(2, 4)
    rows = Rows(ids, ids, None, None, np.zeros(2, dtype=np.int64))
    told = [ledger_after("x", 12, rows, changes) for changes in ([], changed.begun_between(0, 99))]
    assert told[0] == ledger_after("x", 12, rows) != told[1]


def test_weights_are_changed_without_losing_an_epoch(tmp_path: Path) -> None:
    plan = wanted(tmp_path / "a", IDS[:41]).begun(S)
    same = wanted(tmp_path / "a2", IDS[:41])
    again = same.continued(plan, 13)
    assert again.segments[-1].sources[0].kept == 7
    assert again.segments[-1].phases == (Phase(13, (1,)),)
