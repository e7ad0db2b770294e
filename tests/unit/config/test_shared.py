from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import pytest

from trainer.config.compose import Composition, compose, composition
from trainer.config.ds_json import deepspeed_json
from trainer.config.keys import KEYS, build, flatten, is_list, number_or_word, optional
from trainer.config.places import PER_NODE
from trainer.config.plan import make_plan
from trainer.config.schema import TridentConfig
from trainer.config.shared import OWN, shared_values, with_shared
from trainer.config.wandb_variables import VARIABLES
from trainer.config.written import plain
from trainer.topology.muster import Fact, Facts, compare

PROOFS = {
    "data.validation_files": "tests/unit/data/test_data_own_validation.py::test_the_place_of_validation_files_is_free",
    "data.files": "tests/dist/test_ranks_agree.py::test_what_nodes_may_have_of_their_own_does_not_matter",
    "data.hub_path": "tests/dist/test_ranks_agree.py::test_what_nodes_may_have_of_their_own_does_not_matter",
    "tokenizer.path": "tests/dist/test_ranks_agree.py::test_what_nodes_may_have_of_their_own_does_not_matter",
    "data.cache_dir": "tests/dist/test_ranks_agree.py::test_what_nodes_may_have_of_their_own_does_not_matter",
    "data.workers": "tests/unit/data/test_data_build.py::test_any_number_of_workers_writes_the_same_bytes",
    "runtime.threads_per_rank": "tests/dist/test_ranks_agree.py::test_what_nodes_may_have_of_their_own_does_not_matter",
    "zero.nvme_path": "tests/unit/config/test_shared.py::test_a_folder_for_offloading_is_a_place_and_nothing_else",
}
"""Key that ranks may differ in -> the test that shows that it does not matter."""


BLENDS = {
    "data.blend": {"a": {"weight": 1.0, "files": ["x"]}},
    "data.blend_schedule": [{"at_tokens": 5, "weights": {"a": 1.0}}],
}
"""Values of keys that are neither numbers, words nor lists of them."""


def _others(kind: Any, value: object) -> Iterator[object]:
    """Values of a key's type that differ from `value`, the nearest first."""
    inner, may_be_none = optional(kind)
    if may_be_none and value is not None:
        yield None
    if is_list(inner):
        (item, *_) = get_args(inner)
        old = list(value) if isinstance(value, tuple) else []
        yield [*old, next(iter(_others(item, old[-1] if old else None)))]
        return
    number, words = number_or_word(inner)
    if words is not None:
        yield next(iter(words)).value
        inner = number
    if isinstance(inner, type) and issubclass(inner, Enum):
        yield from (member.value for member in inner if member is not value)
    elif inner is bool:
        yield not value
    elif inner is int:
        yield (value if isinstance(value, int) else 0) + 1
    elif inner is float:
        # The next number that there is.
        yield math.nextafter(value if isinstance(value, float) else 0.0, math.inf)
    else:
        assert inner is str, kind
        yield f"{value or ''}x"


def facts(found: Composition) -> Facts:
    return {key: Fact(value, source) for key, (value, source) in shared_values(found).items()}


def with_value(found: Composition, key: str, value: object) -> Composition:
    config = build({**_plain(found.config), key: value})
    return dataclasses.replace(found, config=config, unresolved={**found.unresolved, key: value})


def _plain(config: TridentConfig) -> dict[str, object]:
    return {key: plain(value) for key, value in flatten(config).items()}


@pytest.fixture(scope="module")
def base() -> Composition:
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            environment.delenv(name)
        return composition([])


@pytest.mark.parametrize("key", KEYS)
def test_two_ranks_that_differ_in_a_key_are_refused_or_it_is_said_why_not(key: str, base: Composition) -> None:
    value = flatten(base.config)[key]
    others = [BLENDS[key]] if key in BLENDS else list(_others(KEYS[key], value))
    assert others
    for other in others:
        differs = with_value(base, key, other)
        assert flatten(differs.config)[key] != value
        refused, taken = compare(facts(base), facts(differs))
        assert taken == {}
        assert list(refused) == ([] if key in OWN else [key])


def test_each_key_that_may_differ_has_its_reason_and_its_proof() -> None:
    assert set(OWN) == set(PROOFS)
    assert set(PER_NODE) <= set(OWN) <= set(KEYS)
    for key, proof in PROOFS.items():
        path, _, name = proof.partition("::")
        assert f"\ndef {name}(" in (Path(__file__).parents[3] / path).read_text(), key
    assert all(len(reason) > 20 for reason in OWN.values())


def test_a_folder_for_offloading_is_a_place_and_nothing_else() -> None:
    words = ["data=synthetic", "model.vocab_size=64", "zero.stage=3", "zero.offload=nvme"]
    plans = [make_plan(compose([*words, f"zero.nvme_path=/mnt/{name}"]), 64, 1) for name in "ab"]
    assert plans[0] != plans[1]
    assert plans[0] == dataclasses.replace(plans[1], config=plans[0].config)
    texts = [repr(deepspeed_json(plan)) for plan in plans]
    assert texts[0] != texts[1]
    assert texts[0] == texts[1].replace("/mnt/b", "/mnt/a")


def test_what_was_written_alike_is_decided_by_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "optimizer.lr=${oc.env:LR}",
        "name=${now:%f}",
        "schedule.warmup_steps=${oc.env:WARM}",
        "model.name=${name}",
    ]
    found = []
    for rate in ("0.1", "0.2"):
        monkeypatch.setenv("LR", rate)
        monkeypatch.setenv("WARM", "7")
        found.append(composition(words))
    first, here = (facts(each) for each in found)
    refused, taken = compare(first, here)
    assert refused == {}
    assert taken["optimizer.lr"] == (0.1, 0.2)
    assert set(taken) == {"optimizer.lr", "name", "model.name", "run_dir"}
    settled = with_shared(found[1].config, {key: theirs for key, (theirs, _) in taken.items()})
    assert compare(first, facts(dataclasses.replace(found[1], config=settled))) == ({}, {})


def test_only_the_word_that_differs_is_named() -> None:
    first, here = (composition([f"name={name}", "model.name=${name}"]) for name in "ab")
    refused, taken = compare(facts(first), facts(here))
    assert list(refused) == ["name"]
    assert set(taken) == {"model.name", "run_dir"}


@pytest.mark.parametrize("word", ["run_dir=runs/x", "checkpoint.resume=runs/y"])
def test_a_relative_path_is_that_of_rank_0(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, _, value = word.partition("=")
    found = []
    for name in "ab":
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        each = composition([word, "run_dir=/r"] if key != "run_dir" else [word])
        found.append(facts(each))
    assert compare(*found) == ({}, {key: (str(tmp_path / "a" / value), str(tmp_path / "b" / value))})


def test_two_ways_to_write_one_path_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    ways = [composition([f"run_dir='{path}'"]) for path in ("runs/x", "./runs/x", "~/runs/x", f"{tmp_path}/runs/x")]
    found = [facts(each) for each in ways]
    assert [compare(found[0], other) for other in found] == [({}, {})] * 4


def test_words_of_resuming_are_no_paths(base: Composition) -> None:
    assert facts(base)["checkpoint.resume"].value == "auto"


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, "must" if name == "WANDB_RESUME" else "mine") for name in VARIABLES] + [("WANDB_MODE", "disabled")],
)
def test_each_of_wandbs_variables_is_rank_0s(
    name: str, value: str, base: Composition, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in [other for other in os.environ if other.startswith("WANDB_")]:
        monkeypatch.delenv(other)
    monkeypatch.setenv(name, value)
    found = composition([])
    for first, here in ((base, found), (found, base)):
        refused, taken = compare(facts(first), facts(here))
        assert (refused, list(taken)) == ({}, [VARIABLES.get(name, "logging.wandb")])
        settled = with_shared(here.config, {key: theirs for key, (theirs, _) in taken.items()})
        assert compare(facts(first), facts(dataclasses.replace(here, config=settled))) == ({}, {})


def test_what_wandbs_variables_say_is_rank_0s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    without = composition([])
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    with_it = composition([])
    refused, taken = compare(facts(with_it), facts(without))
    assert (refused, list(taken)) == ({}, ["logging.wandb_project"])
    monkeypatch.delenv("WANDB_PROJECT")
    typed = composition(["logging.wandb_project=mine"])
    refused, _ = compare(facts(typed), facts(without))
    assert refused == {"logging.wandb_project": ("mine", "trident")}
