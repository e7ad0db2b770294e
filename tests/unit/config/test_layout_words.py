from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest

from trainer.config.compose import compose
from trainer.config.layout_words import EXAMPLES, GRAMMAR, continuations, described, spelled_layout
from trainer.config.schema import LayoutConfig, PipelineSchedule
from trainer.errors import ConfigError


def test_every_order_of_the_parts_is_the_same_layout() -> None:
    wanted = LayoutConfig(2, 4, 8, sequence_parallel=True, pipeline_schedule=PipelineSchedule.dualpipev)
    words = [f"layout={'_'.join(parts)}" for parts in permutations(("tp4", "pp2", "dp8", "sp", "dualpipev"))]
    found = [spelled_layout(word.removeprefix("layout=")) for word in words]
    assert all(keys == found[0] for keys in found)
    assert compose([words[0], "model.num_layers=8"]).layout == wanted


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("single", (1, 1, None)), ("tp3", (1, 3, None)), ("dp12_pp5", (5, 1, 12)), ("pp1_tp1_dp1", (1, 1, 1))],
)
def test_what_is_not_named_is_one_and_replicas_fill_the_world(name: str, sizes: tuple[int, int, int | None]) -> None:
    layout = compose([f"layout={name}"]).layout
    assert (layout.pipeline_parallel_size, layout.tensor_parallel_size, layout.data_parallel_size) == sizes


def test_a_spelling_replaces_what_another_file_said(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("# @package _global_\ndefaults:\n  - override /layout: sp_tp2_pp3\n  - _self_\n")
    layout = compose([f"experiment={recipe}"]).layout
    assert (layout.pipeline_parallel_size, layout.tensor_parallel_size, layout.sequence_parallel) == (3, 2, True)
    assert compose([f"experiment={recipe}", "layout=dp2"]).layout == LayoutConfig(data_parallel_size=2)


def test_a_file_of_that_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf" / "layout").mkdir(parents=True)
    (tmp_path / "conf" / "layout" / "tp2.yaml").write_text("tensor_parallel_size: 2\nsequence_parallel: true\n")
    monkeypatch.chdir(tmp_path)
    assert compose(["layout=tp2"]).layout.sequence_parallel


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("tp2_pp2_tp2", "layout=tp2_pp2_tp2 must name each part once, but names tp twice; write tpN"),
        ("sp_tp2_sp", "layout=sp_tp2_sp must name each part once, but names sp twice; write tpN"),
        ("tp2_dp0", "layout=tp2_dp0 must have sizes of at least 1, but has dp0; write tpN"),
        ("tp", "there is no layout=tp; write tpN"),
        ("tp2__pp2", "there is no layout=tp2__pp2; did you mean layout=tp2_pp2?"),
        ("single_tp2", "there is no layout=single_tp2; write tpN"),
        ("tp-2", "there is no layout=tp-2; did you mean layout=tp2?"),
        ("tp02", "there is no layout=tp02; write tpN"),
        ("tp\uff12", "there is no layout=tp\uff12; write tpN"),
    ],
)
def test_what_is_no_layout_is_refused_with_the_grammar(name: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([f"layout={name}"])
    assert str(caught.value).startswith(problem)


def test_a_mistyped_one_in_a_file_is_refused_with_its_line(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("# @package _global_\ndefaults:\n  - override /layout: tp2_tp2\n  - _self_\n")
    with pytest.raises(ConfigError, match="names tp twice"):
        compose([f"experiment={recipe}"])


def test_parts_and_examples_are_explained() -> None:
    for name in EXAMPLES:
        assert spelled_layout(name) is not None
        assert all(meaning.endswith(".") for _, meaning in described(name))
    assert dict(described("tp4_dp2")) == {
        "tp4": "4 tensor-parallel ranks split every layer.",
        "dp2": "2 replicas.",
    }
    assert dict(described("tp1_pp1")) == {
        "tp1": "1 tensor-parallel rank splits every layer.",
        "pp1": "1 pipeline stage.",
    }
    assert [part for part, _ in GRAMMAR] == ["tpN", "ppN", "dpN", "sp", "dualpipev", "single", "auto"]


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("tp4_", {"tp4_pp2", "tp4_dp2", "tp4_sp", "tp4_dualpipev"}),
        ("tp4_p", {"tp4_pp2"}),
        ("tp4_pp3", {"tp4_pp3"}),
        ("single_", set()),
        ("x_", set()),
    ],
)
def test_the_next_part_is_offered(typed: str, wanted: set[str]) -> None:
    assert set(continuations(typed)) == wanted
