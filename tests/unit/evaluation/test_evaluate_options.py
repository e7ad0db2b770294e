from __future__ import annotations

import pytest

from trainer.errors import ConfigError
from trainer.evaluation.evaluate_options import KEYS, OTHER_NAMES, EvaluateOptions, parse


def problems_of(*arguments: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(arguments)
    assert caught.value.hints == ("see `trident evaluate --help`",)
    return caught.value.problems


def test_every_option_is_read_with_its_type() -> None:
    words = {
        "checkpoint": ("runs/demo", "runs/demo"),
        "tasks": ("a,b", ("a", "b")),
        "include_path": ("mine", ("mine",)),
        "num_fewshot": ("3", 3),
        "limit": ("10", 10),
        "chat": ("true", True),
        "ema": ("true", True),
        "part": ("train", "train"),
        "sources": ("web,code", ("web", "code")),
        "stride": ("8", 8),
        "batch_size": ("2", 2),
        "tokenizer": ("t", "t"),
        "output": ("o.json", "o.json"),
        "samples": ("s.jsonl", "s.jsonl"),
    }
    assert set(words) == set(KEYS)
    expected = EvaluateOptions(**{key: value for key, (_, value) in words.items()})  # type: ignore[arg-type]
    assert parse([f"{key}={text}" for key, (text, _) in words.items()]) == expected


def test_words_as_other_programs_take_them() -> None:
    words = ("--tasks", "a,b", "tasks=[c]", "--include-path", "p", "--include-path=q", "--num-fewshot", "2")
    options = parse(["x", *words])
    assert (options.tasks, options.include_path, options.num_fewshot) == (("a", "b", "c"), ("p", "q"), 2)
    settings = ("layout=tp2", "data.source=files", "data=stdlib", "logging.wandb=offline")
    assert parse(["x", *settings]).settings == settings


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "checkpoint must name a run folder, a checkpoint or a model, but is empty"),
        (["x", "limit=-1"], "limit must be at least 0, but is -1"),
        (["x", "limit=many"], "limit must be of type int, but is 'many'"),
        (["x", "tasks=a", "num_fewshot=-2"], "num_fewshot must be at least 0, or -1, but is -2"),
        (["x", "part=held"], "part must be one of all, validation, train, test, but is 'held'"),
        (["x", "sources=a,,b"], "sources must be names with commas, but one is empty"),
        (["x", "output=o.txt"], "output must be the name of a .json file, but is 'o.txt'"),
        (["x", "tasks=a,,b"], "tasks must be names with commas, but one is empty"),
        (["x", "samples=o.jsonl"], "samples has no effect without tasks=...; leave it out"),
        (["x", "num_fewshots=1"], "there is no option 'num_fewshots'; did you mean num_fewshot?"),
        (["x", "shots=1"], "there is no option 'shots'; it is num_fewshot=1 here"),
        (["x", "use_cache=a"], "there is no option 'use_cache'; there is nothing of the kind: every score is computed"),
        (["x", "train.steps=1"], "there is no option 'train.steps'; use one of " + ", ".join(KEYS)),
    ],
)
def test_what_is_wrong_is_named(words: list[str], problem: str) -> None:
    assert problems_of(*words) == (problem,)


def test_names_elsewhere_are_none_of_ours() -> None:
    assert not OTHER_NAMES.keys() & set(KEYS)
