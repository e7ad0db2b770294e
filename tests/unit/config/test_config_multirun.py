from __future__ import annotations

import pytest

from trainer.config.compose import compose
from trainer.config.multirun import points
from trainer.errors import ConfigError


def runs(*words: str) -> list[tuple[str, ...]]:
    return [point.words for point in points(words)]


def test_every_combination_the_last_word_fastest() -> None:
    assert runs("optimizer.lr=1e-3,3e-4", "layout=tp2", "train.seed=1,2,3") == [
        (f"optimizer.lr={lr}", "layout=tp2", f"train.seed={seed}") for lr in ("0.001", "0.0003") for seed in (1, 2, 3)
    ]


def test_hydras_own_sweeper_agrees() -> None:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    words = ["a=1,2", "b=range(1,6,2)", "c=choice(x,'y, z')", "d=[1,2],[3]", "e=sort(3,1,2)", "f=5"]
    [batch] = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)
    assert [list(run) for run in runs(*words)] == batch


def test_a_point_is_named_after_what_differs() -> None:
    found = points(["train.steps=5", "optimizer.lr=1,2", "layout=tp2,tp4"])
    assert [point.name for point in found][::3] == ["optimizer.lr=1,layout=tp2", "optimizer.lr=2,layout=tp4"]


def test_files_of_a_group_by_pattern() -> None:
    assert runs("model=glob(gpt2*)") == [(f"model=gpt2_{size}",) for size in ("124m", "1558m", "355m", "774m")]
    assert runs("model=glob([gpt2*,gpt1*],exclude=*24m)")[0] == ("model=gpt1_117m",)


def test_of_two_words_for_a_key_the_later_one_counts() -> None:
    assert runs("train.seed=1,2", "train.steps=3,4", "train.seed=5") == [
        ("train.steps=3", "train.seed=5"),
        ("train.steps=4", "train.seed=5"),
    ]


def test_a_stray_local_rank_is_none_of_the_words() -> None:
    assert runs("--local_rank=0", "train.seed=1,2") == [("train.seed=1",), ("train.seed=2",)]


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("train.seed=1", "--multirun needs a key with several values, but every key has one"),
        ("optimizer.lr=interval(0,1)", "'optimizer.lr=interval(0,1)' has no values to list"),
        ("model=glob(nothing*)", "'model=glob(nothing*)' must give at least one value, but gives none"),
    ],
)
def test_what_is_no_sweep(word: str, problem: str) -> None:
    with pytest.raises(ConfigError) as found:
        points([word])
    assert found.value.problems[0].startswith(problem)


def test_words_that_cannot_be_read_are_left_to_the_composer() -> None:
    [first, _] = points(["train.seed=1,2", "data.files=[a"])
    with pytest.raises(ConfigError, match=r"cannot be read as key=value"):
        compose(first.words)
