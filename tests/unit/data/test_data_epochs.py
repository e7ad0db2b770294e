from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.shards import prepared_of
from tests.unit.data.data_fixtures import config
from trainer.config.batch_sizes import batch_sizes
from trainer.config.compose import compose
from trainer.config.validate import problems
from trainer.data.epochs import with_steps
from trainer.data.prepare import prepare
from trainer.data.streams import new_stream
from trainer.data.told import told_epochs
from trainer.dry_run import plan_without_data, told_length, told_reads
from trainer.errors import ConfigError


def data(folder: Path, samples: int) -> Any:
    return prepared_of(folder, [np.arange(samples * 4 + 1)])


@pytest.mark.parametrize(
    ("epochs", "samples", "more", "steps"),
    [
        (1, 24, {}, 4),
        (1, 25, {}, 5),
        (0.5, 24, {}, 2),
        (3, 7, {}, 4),
        (1e-9, 24, {}, 1),
        (2, 24, {"batch__rampup_sizes": [2, 4], "batch__rampup_steps": [2, 4]}, 10),
        (1, 12, {"batch__rampup_sizes": [2, 4], "batch__rampup_steps": [4, 6], "schedule__warmup_steps": 0}, None),
    ],
)
def test_epochs_are_whole_steps(
    tmp_path: Path, epochs: float, samples: int, more: dict[str, Any], steps: int | None
) -> None:
    keys = {
        "train__epochs": epochs,
        "model__seq_length": 4,
        "batch__global_batch_size": 6,
        "schedule__warmup_steps": 0,
        "data__source": "synthetic",
        "model__vocab_size": 2048,
        "schedule__kind": "constant",
    }
    wanted, prepared = config(**(keys | more)), data(tmp_path, samples)
    if steps is None:
        # The batch would still grow when the run ends.
        with pytest.raises(ConfigError, match=r"must end before train\.steps \(5\), but takes 6 steps") as caught:
            with_steps(wanted, prepared)
        assert caught.value.hints == ("train.epochs=1 are 5 steps over 12 samples",)
        return
    found = with_steps(wanted, prepared)
    assert (found.train.steps, found.train.epochs) == (steps, None)
    sizes = batch_sizes(wanted.batch, 4)
    assert sizes.sequences(steps) >= epochs * samples > sizes.sequences(steps - 1)
    assert told_epochs(wanted, new_stream(prepared, wanted, 4), steps) == (
        f"data    train.epochs={epochs:g} of {samples} samples of 4 tokens are {steps} steps"
    )
    assert told_epochs(found, new_stream(prepared, wanted, 4), steps) is None


def test_a_run_in_steps_stays_as_it_is(tmp_path: Path) -> None:
    wanted = config(train__steps=7)
    assert with_steps(wanted, data(tmp_path, 1)) is wanted


def test_rules_about_steps_are_asked_when_they_are_known(tmp_path: Path) -> None:
    words = ["train.epochs=1", "schedule.warmup_steps=500", "model=gpt_debug", "model.seq_length=4"]
    wanted = compose(words)
    assert problems(wanted) == []
    with pytest.raises(ConfigError, match=r"schedule\.warmup_steps \(500\) must be less than train\.steps \(3\)"):
        with_steps(wanted, data(tmp_path, 3 * wanted.batch.global_batch_size))


def test_the_length_of_a_run_is_said_in_one_way(tmp_path: Path) -> None:
    assert problems(compose(["train.steps=7", "train.epochs=2"])) == [
        "train.steps (7) and train.epochs (2) both say how long the run is; leave one of them out"
    ]
    (tmp_path / "steps.yaml").write_text("train: {steps: 7}\n")
    (tmp_path / "epochs.yaml").write_text("train: {epochs: 7}\n")
    # A word takes the place of what a file says.
    first, second = (f"config={tmp_path / name}.yaml" for name in ("steps", "epochs"))
    assert [compose([first, "train.epochs=2"]).train.steps, compose([first]).train.steps] == [100, 7]
    assert [compose([second, "train.steps=3"]).train.epochs, compose([second]).train.epochs] == [None, 7.0]
    assert problems(compose(["train.epochs=0"]))[0].startswith("train.epochs must be")


def test_a_plan_says_whether_it_knows_the_steps(tmp_path: Path) -> None:
    words = ["data=synthetic", "model.vocab_size=64", "data.synthetic_tokens=4096", f"data.cache_dir={tmp_path}"]
    wanted = compose([*words, "train.epochs=3", "model.seq_length=8", "batch.global_batch_size=8", "model=gpt_debug"])
    assert told_length(wanted) == (
        "steps   train.epochs=3 becomes steps when the data are prepared here (trident data): until then days, price "
        "and loss are those of 100 steps"
    )
    assert plan_without_data(wanted).steps == 100
    samples = (prepare(wanted).train_tokens - 1) // 8
    assert told_length(wanted) is None
    assert plan_without_data(wanted).steps == -(-3 * samples // 8)
    assert told_length(compose(words)) is None


def test_a_plan_says_how_often_sources_are_read_once_they_are_prepared(tmp_path: Path) -> None:
    blend = "data.blend={a: {weight: 1, synthetic_tokens: 4096}, b: {weight: 3, synthetic_tokens: 2048}}"
    words = ["data=synthetic", "model=gpt_debug", "model.vocab_size=64", f"data.cache_dir={tmp_path}", blend]
    wanted = compose([*words, "train.steps=2", "model.seq_length=8", "batch.global_batch_size=200"])
    assert list(told_reads(wanted, plan_without_data(wanted))) == []
    prepare(wanted)
    first, second = told_reads(wanted, plan_without_data(wanted))
    assert first.startswith("data    a: 25.0% of the stream; the run reads its ")
    assert second.endswith("1.20 times: its samples repeat")
