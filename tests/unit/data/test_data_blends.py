"""Blends of several sources, from files to the batches of every rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.shards import prepared_of
from tests.unit.data.data_fixtures import config, told, write_text
from trainer.config.blend_sources import source_configs
from trainer.config.plan import make_plan
from trainer.config.schema import TridentConfig
from trainer.data.batches import training_batches, validation_batches
from trainer.data.blended import joined
from trainer.data.capacity import check_capacity
from trainer.data.prepare import look_up, prepare
from trainer.data.prepared import PreparedData, stream_identity
from trainer.data.stream_order import StreamOrder
from trainer.data.stream_plan import Phase, StreamPlan
from trainer.data.streams import WantedStream, check_epochs, epochs_at, new_stream
from trainer.data.told import told_sources
from trainer.errors import DataError

CPU = torch.device("cpu")
S = 4
SIZES = {"web": 30, "code": 12, "math": 7}


def blend_of(weights: Mapping[str, float], **values: Any) -> TridentConfig:
    keys = {
        "data__blend": {name: {"weight": weight, "source": "synthetic"} for name, weight in weights.items()},
        "model__seq_length": S,
        "model__vocab_size": 10**4,
        "batch__global_batch_size": 6,
    }
    return config(**(keys | values))


def data_of(folder: Path, wanted: TridentConfig, sizes: dict[str, int] | None = None) -> PreparedData:
    """Return sources whose ids tell where they are: 1000 x number of the source + number of the token."""
    found = {}
    for number, (name, own) in enumerate(source_configs(wanted).items()):
        count = (sizes or SIZES)[name] * S + 1
        ids = 1000 * number + np.arange(count)
        found[name] = own, prepared_of(folder / name, [ids], [ids[: 3 * S + 1] + 500])
    return joined(wanted, found)


def rows_of(prepared: PreparedData, wanted: TridentConfig, dp: int, stream: StreamPlan | int, at: int) -> list[int]:
    """Return the first id of each sequence of a global batch, put together from all ranks."""
    plan = make_plan(wanted, 10**4, dp)
    of_ranks = [training_batches(prepared, plan, stream, rank, CPU).micro_batches(at) for rank in range(dp)]
    rows: list[int] = []
    for parts in zip(*of_ranks, strict=True):
        for batch in parts:
            assert batch.sources == tuple(int(first) // 1000 for first in batch.input_ids[:, 0])
            assert torch.equal(batch.input_ids[:, 1:], batch.targets()[:, :-1])
            rows += batch.input_ids[:, 0].tolist()
    return rows


LAYOUTS = st.sampled_from([(1, 1), (2, 1), (3, 2), (1, 6), (6, 1)])
WEIGHTS = st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any)
APPENDED = st.tuples(*[st.integers(0, 9)] * 3)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 10**6),
    LAYOUTS,
    st.lists(st.integers(1, 5), min_size=1, max_size=5),
    WEIGHTS,
    st.none() | st.tuples(st.integers(1, 60), WEIGHTS),
)
def test_what_all_ranks_see_is_the_plan_in_its_order(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    layout: tuple[int, int],
    stops: list[int],
    weights: list[int],
    change: tuple[int, list[int]] | None,
) -> None:
    """For any seed, layout, blend and schedule, in one go or started again after any number of steps."""
    dp, micro = layout
    names = dict(zip(SIZES, weights, strict=True))
    schedule = [] if change is None else [{"at_tokens": change[0], "weights": dict(zip(SIZES, change[1], strict=True))}]
    wanted = blend_of(
        names,
        train__seed=seed,
        layout__data_parallel_size=dp,
        batch__micro_batch_size=micro,
        data__blend_schedule=schedule,
    )
    folder = tmp_path_factory.getbasetemp() / "blend"
    prepared = data_of(folder, wanted)
    position, seen = 0, []
    for steps in stops:
        for _ in range(steps):
            seen += rows_of(prepared, wanted, dp, S, position)
            position += 6 * S
    picks = StreamOrder(new_stream(prepared, wanted, S)).picks(0, len(seen))
    assert seen == (1000 * picks.sources + S * picks.samples).tolist()


@settings(deadline=None, max_examples=10)
@given(
    st.integers(0, 10**6),
    st.lists(
        st.tuples(LAYOUTS, WEIGHTS, st.tuples(*[st.integers(0, 9)] * 3), st.integers(1, 4)), min_size=2, max_size=4
    ),
)
def test_what_all_ranks_see_is_the_plan_also_where_layout_blend_and_data_change_on_the_way(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    stretches: list[tuple[tuple[int, int], list[int], tuple[int, ...], int]],
) -> None:
    """For any seed; each start has a layout, weights and appended samples of its own."""
    sizes, seen = dict(SIZES), list[int]()
    stream: StreamPlan | None = None
    for (dp, micro), weights, appended, steps in stretches:
        keys = {"layout__data_parallel_size": dp, "batch__micro_batch_size": micro, "train__seed": seed}
        wanted = blend_of(dict(zip(SIZES, weights, strict=True)), data__on_change="continue", **keys)
        sizes = {name: size + more for (name, size), more in zip(sizes.items(), appended, strict=True)}
        prepared = data_of(tmp_path_factory.mktemp("appended"), wanted, sizes)
        asked = WantedStream(prepared, wanted)
        before = stream
        stream = asked.begun(S) if stream is None else asked.continued(stream, len(seen))
        if before is not None:
            then, now = StreamOrder(before).picks(0, len(seen)), StreamOrder(stream).picks(0, len(seen))
            assert np.array_equal(then, now), "what was read stays what it was"
        for _ in range(steps):
            seen += rows_of(prepared, wanted, dp, stream, len(seen) * S)
    assert stream is not None
    picks = StreamOrder(stream).picks(0, len(seen))
    assert seen == (1000 * picks.sources + S * picks.samples).tolist()


def test_weights_hold_to_a_sample_and_change_where_they_should(tmp_path: Path) -> None:
    wanted = blend_of(
        {"web": 0.5, "code": 0.25, "math": 0.25},
        data__blend_schedule=[{"at_tokens": 8 * S + 1, "weights": {"web": 0, "code": 1, "math": 1}}],
    )
    stream = new_stream(data_of(tmp_path, wanted), wanted, S)
    # From the first sample that begins there on.
    assert stream.segments[0].phases == (Phase(0, (2, 1, 1)), Phase(9, (0, 1, 1)))
    sources = StreamOrder(stream).picks(0, 109).sources
    assert np.bincount(sources[:8]).tolist() == [4, 2, 2]
    assert np.bincount(sources[9:], minlength=3).tolist() == [0, 50, 50]


def test_each_source_has_validation_data_of_its_own(tmp_path: Path) -> None:
    wanted = blend_of({"web": 3, "code": 1, "math": 0}, train__eval_every=1)
    prepared = data_of(tmp_path, wanted)
    held_out = validation_batches(prepared, make_plan(wanted, 10**4), 0, CPU)
    assert [(one.name, one.weight) for one in held_out] == [("web", 3.0), ("code", 1.0), ("math", 0.0)]
    for number, one in enumerate(held_out):
        firsts = [int(batch.input_ids[0, 0]) for batch in one.batches.micro_batches(0)]
        assert firsts == [1000 * number + 500 + S * (index % 3) for index in range(6)]
    check_capacity(prepared, wanted)


def test_a_source_that_is_too_small_is_named(tmp_path: Path) -> None:
    wanted = blend_of({"web": 1, "math": 1}, train__eval_every=1, model__seq_length=20)
    prepared = data_of(tmp_path / "a", wanted, {"web": 40, "math": 1})
    assert told(lambda: new_stream(prepared, wanted, 20)) == (
        "the training data must hold at least one sample of 20 tokens, the sequence length that this run began with, "
        "but those of data.blend.math hold 5 tokens; use more data"
    )
    assert told(lambda: check_capacity(prepared, wanted)).startswith(
        "the validation data must hold at least one sequence of 20 tokens, but those of data.blend.web hold 13 tokens"
    )


def test_sources_are_prepared_each_on_its_own(tmp_path: Path) -> None:
    web = write_text(tmp_path / "web.txt", "the web is wide. " * 400)
    code = write_text(tmp_path / "code.txt", "def f(x): return x\n" * 400)
    wanted = config(
        data__blend={"web": {"weight": 1, "files": [str(web)]}, "code": {"weight": 2, "files": [str(code)]}},
        data__cache_dir=str(tmp_path / "cache"),
        tokenizer__kind="bytes",
        model__seq_length=16,
    )
    assert look_up(wanted)[1] is None
    prepared = prepare(wanted)
    assert look_up(wanted)[1] == prepared
    assert [source.name for source in prepared.sources] == ["web", "code"]
    alone = [prepare(own) for own in source_configs(wanted).values()]
    assert [source.prepared for source in prepared.sources] == alone
    assert prepared.train_tokens == sum(one.train_tokens for one in alone)
    assert prepared.shards("train").tokens(0, 5).tolist() == alone[0].shards("train").tokens(0, 5).tolist()
    assert prepared.vocab_size == alone[0].vocab_size == 257
    missing = replace(wanted, data=replace(wanted.data, blend=source_blend(str(web), str(tmp_path / "none.txt"))))
    assert told(lambda: prepare(missing)).startswith("data.blend.code: data.files")
    with pytest.raises(DataError, match=r"data\.blend\.code: data\.files"):
        look_up(missing)


def source_blend(*paths: str) -> Any:
    blend = {name: {"weight": 1, "files": [path]} for name, path in zip(("web", "code"), paths, strict=True)}
    return config(data__blend=blend).data.blend


def test_everything_that_decides_a_blend_is_in_the_streams_identity(tmp_path: Path) -> None:
    wanted = blend_of({"web": 1, "code": 2})
    prepared = data_of(tmp_path, wanted)
    change = [{"at_tokens": 100, "weights": {"web": 1, "code": 1}}]
    others = [
        stream_identity(prepared, blend_of({"web": 1, "code": 2}, train__seed=1)),
        stream_identity(prepared, blend_of({"web": 1, "code": 3})),
        stream_identity(prepared, blend_of({"web": 1, "code": 2}, data__blend_schedule=change)),
        stream_identity(replace(prepared, sources=prepared.sources[::-1]), wanted),
    ]
    assert len({stream_identity(prepared, wanted), *others}) == 5
    assert stream_identity(prepared, blend_of({"web": 1, "code": 2}, batch__global_batch_size=12)) not in others


def test_repeats_are_told_or_refused(tmp_path: Path) -> None:
    wanted = blend_of({"web": 3, "code": 1, "math": 0})
    prepared = data_of(tmp_path, wanted)
    stream = new_stream(prepared, wanted, S)
    assert epochs_at(stream, 80) == {"web": 2.0, "code": 20 / 12, "math": 0.0}
    assert list(told_sources(prepared, wanted, stream, 40 * S)) == [
        "data    web: 75.0% of the stream; the run reads its 30 samples of 4 tokens, 100% of them",
        "data    code: 25.0% of the stream; the run reads its 12 samples of 4 tokens, 83% of them",
        "data    math: 0.0% of the stream; the run reads its 7 samples of 4 tokens, 0% of them",
    ]
    web = next(told_sources(prepared, wanted, stream, 48 * S))
    assert web.endswith("4 tokens, 1.20 times: its samples repeat")
    limited = replace(wanted, data=replace(wanted.data, max_epochs=1.0))
    check_epochs(stream, limited, 40 * S)
    check_epochs(stream, wanted, 48 * S)
    assert told(lambda: check_epochs(stream, limited, 48 * S)) == (
        "no source may be read more than data.max_epochs (1) times, but the run would read web 1.20 times; give it "
        "more data or a smaller weight, or lower train.steps"
    )


def test_samples_of_a_blend_are_named_with_their_source(tmp_path: Path) -> None:
    wanted = blend_of({"web": 1, "math": 1})
    source = training_batches(data_of(tmp_path, wanted), make_plan(wanted, 10**4), S, 0, CPU)
    names = [str(sample).partition(":")[0] for sample in source.sample_ids(0)]
    assert sorted(names) == ["math"] * 3 + ["web"] * 3
    assert source.epochs(14 * S) == {"data/epochs/web": 7 / 30, "data/epochs/math": 1.0}


def test_the_examples_of_a_blend_are_counted_together(tmp_path: Path) -> None:
    paths = []
    for name in ("a", "b"):
        lines = [f'{{"prompt": "{name} {number}?", "completion": "yes {number}"}}' for number in range(60)]
        paths.append(write_text(tmp_path / f"{name}.jsonl", "\n".join(lines)))
    wanted = config(
        data__blend={path.stem: {"weight": 1, "files": [str(path)]} for path in paths},
        data__records="prompt_completion",
        data__cache_dir=str(tmp_path / "cache"),
        tokenizer__kind="bytes",
        model__seq_length=64,
    )
    prepared = prepare(wanted)
    assert prepared.packed is not None
    assert prepared.packed.examples == 120
    assert prepared.packed.seq_length == 64
    assert prepared.attended is not None
    batch = training_batches(prepared, make_plan(wanted, 257), 64, 0, CPU).micro_batches(0)[0]
    assert batch.documents is not None
