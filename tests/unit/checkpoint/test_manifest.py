from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainer.checkpoint.manifest import (
    MANIFEST,
    Layout,
    Manifest,
    check_files,
    check_layout,
    file_sizes,
    read_manifest,
)
from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import (
    Dtype,
    LayoutConfig,
    ModelConfig,
    OffloadKind,
    PipelineSchedule,
    PrecisionConfig,
    RecomputeKind,
    TridentConfig,
    ZeroConfig,
)
from trainer.errors import CheckpointError
from trainer.loop.state import TrainState

MODEL = ModelConfig(num_layers=8, seq_length=16)


def plan_of(config: TridentConfig | None = None, vocab_size: int = 100) -> RunPlan:
    layout = LayoutConfig(pipeline_parallel_size=2, tensor_parallel_size=2, data_parallel_size=2)
    return make_plan(config or TridentConfig(model=MODEL, layout=layout), vocab_size)


def manifest_of(plan: RunPlan | None = None, files: dict[str, int] | None = None) -> Manifest:
    plan = plan or plan_of()
    state = TrainState(step=7, tokens_seen=70, sample_ledger="abc")
    return Manifest(7, Layout.of(plan), state.to_dict(), plan.model.vocab_size, files or {})


def written(folder: Path, text: str | bytes | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = manifest_of().to_json() if text is None else text
    (folder / MANIFEST).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.bin").write_bytes(b"12345")
    (tmp_path / "y.bin").write_bytes(b"")
    manifest = manifest_of(files=file_sizes(tmp_path))
    assert read_manifest(written(tmp_path, manifest.to_json())) == manifest
    assert manifest.files == {"a/x.bin": 5, "y.bin": 0}
    assert file_sizes(tmp_path) == manifest.files, "the manifest does not count itself"
    check_files(tmp_path, manifest)
    check_layout(manifest, plan_of(), tmp_path)


def test_the_layout_of_a_plan() -> None:
    assert Layout.of(plan_of()) == Layout(2, 2, 2, "1f1b", 1, "none", "fp32", (4,))
    assert Layout.of(make_plan(TridentConfig(), 100)).stage_boundaries == ()


def change(edit: Callable[[dict[str, Any]], object]) -> str:
    raw = json.loads(manifest_of().to_json())
    edit(raw)
    return json.dumps(raw)


def drop(*path: str) -> str:
    def edit(raw: dict[str, Any]) -> None:
        for key in path[:-1]:
            raw = raw[key]
        del raw[path[-1]]

    return change(edit)


def put(value: object, *path: str) -> str:
    def edit(raw: dict[str, Any]) -> None:
        for key in path[:-1]:
            raw = raw[key]
        raw[path[-1]] = value

    return change(edit)


TOP = ("format_version", "step", "layout", "train_state", "vocab_size", "files")
LAYOUT = (
    "pipeline_parallel_size",
    "tensor_parallel_size",
    "data_parallel_size",
    "pipeline_schedule",
    "zero_stage",
    "offload",
    "dtype",
    "stage_boundaries",
)


@pytest.mark.parametrize("path", [*((key,) for key in TOP), *(("layout", key) for key in LAYOUT)], ids=".".join)
def test_a_missing_key_is_named(tmp_path: Path, path: tuple[str, ...]) -> None:
    with pytest.raises(CheckpointError, match=rf"manifest\.json must be .* lacks '{path[-1]}'"):
        read_manifest(written(tmp_path, drop(*path)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (put("7", "step"), "step must be a whole number of at least 0, but is '7'"),
        (put(7.5, "step"), "step must be a whole number"),
        (put(True, "step"), "step must be a whole number"),
        (put(-1, "step"), "step must be a whole number"),
        (put(None, "vocab_size"), "vocab_size must be a whole number"),
        (put([], "layout"), "layout must be a JSON object"),
        (put(2, "layout", "offload"), "offload must be text, but is 2"),
        (put("2", "layout", "zero_stage"), "zero_stage must be a whole number"),
        (put(4, "layout", "stage_boundaries"), "stage_boundaries must be a list, but is 4"),
        (put(["4"], "layout", "stage_boundaries"), "stage_boundaries must be a whole number"),
        (put([["step", 7]], "train_state"), "train_state must be a JSON object"),
        (put({"step": 7}, "train_state"), "tokens_seen must be a whole number"),
        (put("7", "train_state", "step"), "step must be a whole number"),
        (put(["a"], "files"), "files must be a JSON object"),
        (put({"a": "5"}, "files"), "a must be a whole number"),
        (put({"a": -5}, "files"), "a must be a whole number"),
        (put({"/etc/passwd": 5}, "files"), "must be below the checkpoint, but one is '/etc/passwd'"),
        (put({"a/../../b": 5}, "files"), "must be below the checkpoint"),
        (put({"": 5}, "files"), "must be below the checkpoint"),
        (put(2, "format_version"), "format_version must be 1, but is 2"),
        (put("1", "format_version"), "format_version must be 1, but is '1'"),
        ("[1, 2]", "it must be a JSON object, but is a list"),
        ('"text"', "it must be a JSON object, but is a str"),
        ("null", "it must be a JSON object, but is a NoneType"),
        ("3", "it must be a JSON object, but is a int"),
        ("", "cannot be read"),
        (manifest_of().to_json()[:-20], "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        ("[" * 200_000, "cannot be read"),
    ],
)
def test_a_malformed_manifest_is_an_error_that_says_what_is_wrong(
    tmp_path: Path, text: str | bytes, words: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_manifest(written(tmp_path, text))
    assert words in str(caught.value)
    assert str(tmp_path / MANIFEST) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must be a checkpoint, but holds no manifest\.json"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_manifest(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_manifest(tmp_path / "file")


def test_a_missing_file_and_a_file_of_another_size_are_named(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"123")
    manifest = manifest_of(files={"good": 3, "sub/gone": 1})
    with pytest.raises(CheckpointError, match="sub/gone must exist, but is missing"):
        check_files(tmp_path, manifest)
    (tmp_path / "sub" / "gone").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="sub/gone must exist, but is missing"):
        check_files(tmp_path, manifest)
    for size in (2, 4):
        with pytest.raises(CheckpointError, match=f"good must have {size} bytes, but has 3"):
            check_files(tmp_path, manifest_of(files={"good": size}))


LAYOUTS = LayoutConfig(pipeline_parallel_size=2, tensor_parallel_size=2, data_parallel_size=2)
HERE = TridentConfig(model=MODEL, layout=LAYOUTS)


@pytest.mark.parametrize(
    ("there", "setting"),
    [
        (replace(HERE, layout=replace(LAYOUTS, pipeline_parallel_size=1)), "layout.pipeline_parallel_size=1 (not 2)"),
        (replace(HERE, layout=replace(LAYOUTS, tensor_parallel_size=4)), "layout.tensor_parallel_size=4 (not 2)"),
        (replace(HERE, layout=replace(LAYOUTS, data_parallel_size=1)), "layout.data_parallel_size=1 (not 2)"),
        (
            replace(HERE, layout=replace(LAYOUTS, pipeline_schedule=PipelineSchedule.dualpipev)),
            "layout.pipeline_schedule=dualpipev (not 1f1b)",
        ),
        (replace(HERE, layout=replace(LAYOUTS, stage_boundaries=(1,))), "layout.stage_boundaries=[1] (not [4])"),
        (replace(HERE, zero=ZeroConfig(stage=0)), "zero.stage=0 (not 1)"),
        (replace(HERE, zero=ZeroConfig(offload=OffloadKind.cpu)), "zero.offload=cpu (not none)"),
        (replace(HERE, precision=PrecisionConfig(dtype=Dtype.bf16)), "precision.dtype=bf16 (not fp32)"),
    ],
)
def test_each_difference_of_layout_is_refused_with_the_key_to_set(there: TridentConfig, setting: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_layout(manifest_of(plan_of(there)), plan_of(HERE), Path("run/checkpoints/step_7"))
    assert setting in str(caught.value)
    assert setting.split(" (")[0] in caught.value.hints[0]


def test_all_differences_are_named_at_once_and_the_hint_can_be_pasted() -> None:
    layout = LayoutConfig(pipeline_parallel_size=4, data_parallel_size=8)
    there = TridentConfig(MODEL, layout=layout, zero=ZeroConfig(stage=0), precision=PrecisionConfig(Dtype.bf16))
    with pytest.raises(CheckpointError) as caught:
        check_layout(manifest_of(plan_of(there, vocab_size=90)), plan_of(), Path("step_7"))
    assert caught.value.hints[0] == (
        "set layout.pipeline_parallel_size=4 layout.tensor_parallel_size=1 layout.data_parallel_size=8 zero.stage=0 "
        "precision.dtype=bf16 layout.stage_boundaries=[2,4,6] model.vocab_size=90"
    )
    for item in caught.value.hints[0].removeprefix("set ").split():
        assert item in str(caught.value)


def test_stages_that_were_cut_elsewhere_because_of_another_setting_are_noticed() -> None:
    # The same pipeline size, but recomputation makes blocks dearer than the head, and so moves the cut.
    model = replace(MODEL, num_layers=32)
    layout = LayoutConfig(pipeline_parallel_size=2)
    here = plan_of(TridentConfig(replace(model, recompute=RecomputeKind.full), layout=layout), 8000)
    there = plan_of(TridentConfig(model, layout=layout), 8000)
    with pytest.raises(CheckpointError, match=r"layout\.stage_boundaries=\[\d+\] \(not \[\d+\]\)"):
        check_layout(manifest_of(there), here, Path("step_7"))


def test_a_vocabulary_that_padding_would_hide_is_noticed() -> None:
    assert plan_of(vocab_size=97).model.padded_vocab_size == plan_of(vocab_size=100).model.padded_vocab_size
    with pytest.raises(CheckpointError, match=r"model\.vocab_size=97 \(not 100\)"):
        check_layout(manifest_of(plan_of(vocab_size=97)), plan_of(vocab_size=100), Path("step_7"))
