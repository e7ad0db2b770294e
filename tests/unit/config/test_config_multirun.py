from __future__ import annotations

import pytest

from trainer.config.compose import compose
from trainer.config.multirun import points, search_space
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
        ("layout=glob(tp*)", "'layout=glob(tp*)' must give at least one value, but gives none"),
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


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train.seed=range(100000000)"], "the values of train.seed (100,000,000) make 100,000,000"),
        (
            ["train.seed=range(101)", "optimizer.lr=range(0,1,0.01)"],
            "train.seed (101) and optimizer.lr (100) make 10,100",
        ),
        (
            ["optimizer.lr=shuffle(range(0.0,1.0,1e-9))", "layout=tp2"],
            "optimizer.lr (1,000,000,000) make 1,000,000,000",
        ),
        (["train.seed=range(100000000,0,-1)"], "make 100,000,000;"),
        (["train.seed=sort(range(100000000))"], "make 100,000,000;"),
        (["optimizer.lr=range(0,1e300)"], "make more than 1,000,000,000,000,000;"),
    ],
)
def test_too_many_runs_are_counted_and_not_made(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as found:
        points(words)
    [problem] = found.value.problems
    assert problem.startswith("a sweep must be at most 10,000 runs, but the values of ")
    assert told in problem


def test_as_many_runs_as_there_may_be() -> None:
    assert len(points(["train.seed=range(100)", "train.steps=range(100)"])) == 10_000


@pytest.mark.parametrize("text", ["range(0,10,0)", "range(0.0,1.0,0)", "range(0,inf)", "range(nan,1)"])
def test_a_range_without_an_end(text: str) -> None:
    for take in (points, search_space):
        with pytest.raises(ConfigError, match="finite numbers and a step other than 0"):
            take([f"optimizer.lr={text}"])


def test_a_search_takes_a_long_range_of_whole_numbers() -> None:
    _, [dimension] = search_space(["train.seed=range(0,100000001,2)"])
    assert (dimension.low, dimension.high, dimension.step, dimension.is_whole) == (0, 100_000_000, 2, True)
    with pytest.raises(ConfigError, match=r"at most 10,000 runs.*interval\(low,high\)"):
        search_space(["optimizer.lr=range(0.0,1.0,1e-9)"])
