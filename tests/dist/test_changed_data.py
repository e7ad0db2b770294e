"""A run whose data are appended to, or whose blend changes, goes on from where it is, and only when it is told to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.dist import run_distributed
from tests.unit.data.data_fixtures import write_text
from trainer.beginning import Beginning
from trainer.checkpoint.manifest import read_manifest
from trainer.config.compose import compose
from trainer.data.stream_order import StreamOrder
from trainer.data.stream_plan import StreamPlan
from trainer.errors import DataError
from trainer.metrics.jsonl import read_rows

pytestmark = [pytest.mark.dist, pytest.mark.timeout(240)]
SETTINGS = (
    *("tokenizer=bytes", "data.validation_fraction=0", "runtime.device=cpu"),
    *("model.hidden_size=16", "model.num_layers=2", "model.num_attention_heads=2", "model.seq_length=8"),
    *("batch.global_batch_size=8", "logging.wandb=disabled", "logging.console=quiet", "launch.max_restarts=0"),
)
CONTINUE = "data.on_change=continue"


def _train(rank: int, world_size: int, place: Path, arguments: tuple[str, ...]) -> list[str]:
    """Train as one rank of the whole program; return the names of the samples of all steps."""
    from trainer.app import train_rank
    from trainer.data.batches import BatchSource
    from trainer.launcher.environment import World
    from trainer.micro_batch import MicroBatch

    read: list[str] = []
    original = BatchSource.micro_batches

    def spy(self: BatchSource, position: int, step: int | None = None) -> list[MicroBatch]:
        read.extend(str(sample) for sample in self.sample_ids(position, step))
        return original(self, position, step)

    BatchSource.micro_batches = spy  # type: ignore[method-assign]
    assert train_rank(compose(words(place, *arguments)), World(rank=rank, local_rank=rank, size=world_size)) == 0
    return read


def words(place: Path, *arguments: str) -> list[str]:
    return [*SETTINGS, f"run_dir={place / 'R'}", f"data.cache_dir={place / 'cache'}", *arguments]


def train(place: Path, *arguments: str, ranks: int = 1) -> list[str]:
    found: list[list[str]] = run_distributed(_train, ranks, place, arguments, timeout_s=120)
    return found[0]


def plan_at(place: Path, step: int) -> StreamPlan:
    state = read_manifest(place / "R" / "checkpoints" / f"step_{step}").train_state
    assert isinstance(state["segments"], list)
    return StreamPlan.from_list(8, state["segments"])


def named(plan: StreamPlan, segment: int, first: int, count: int) -> list[str]:
    """Return the samples of a stretch as the plan that a checkpoint holds says them."""
    sources, samples = StreamOrder(plan).picks(first, count)
    names = [one.name for one in plan.segments[segment].sources]
    if len(names) == 1:
        return [str(sample) for sample in samples]
    return [f"{names[source]}:{sample}" for source, sample in zip(sources, samples, strict=True)]


def test_data_that_grow_and_become_a_blend(tmp_path: Path) -> None:
    first = write_text(tmp_path / "a.txt", "".join(f"line {number} of the first\n" for number in range(40)))
    second = write_text(tmp_path / "b.txt", "".join(f"the second has {number}\n" for number in range(40)))
    place = tmp_path / "run"
    one, two = (f"data.files=[{','.join(map(str, files))}]" for files in ([first], [first, second]))
    seen = train(place, "data=files", one, "train.steps=3")
    # Refused without the word, with the key and the way.
    with pytest.raises(DataError, match=r"data\.files must give the tokens that this run") as caught:
        Beginning(compose(words(place, "data=files", two, "train.steps=5"))).by_parent()
    assert f"to go on with these data from here on set {CONTINUE}" in caught.value.hints
    # Appended: in another layout, too.
    seen += train(place, "data=files", two, "train.steps=5", CONTINUE, "layout.data_parallel_size=2", ranks=2)
    blend = f"data.blend={{a: {{weight: 1, files: [{first}]}}, b: {{weight: 3, files: [{second}]}}}}"
    with pytest.raises(DataError, match=r"^data\.files and data\.blend must give the tokens that this run"):
        Beginning(compose(words(place, "data=files", blend, "train.steps=7"))).by_parent()
    seen += train(place, "data=files", blend, "train.steps=7", CONTINUE)
    # It is the run's now: no word is needed to go on.
    seen += train(place, "data=files", blend, "train.steps=8")

    plan = plan_at(place, 8)
    assert [segment.first for segment in plan.segments] == [0, 24, 40]
    grown = plan.segments[1].sources[0]
    samples = plan.segments[0].sources[0].samples
    assert (grown.kept, grown.rest - grown.kept) == (-24 % samples, grown.samples - samples)
    blended = plan.segments[2].sources
    # The first file is what the run began with; of the second one nothing was known by this name.
    assert [source.name for source in blended] == ["a", "b"]
    expected = [*named(plan, 0, 0, 24), *named(plan, 1, 24, 16), *named(plan, 2, 40, 24)]
    assert seen == expected
    ledgers = [row["data/sample_ledger"] for row in read_rows(place / "R" / "metrics.jsonl")]
    assert len(set(ledgers)) == 8
