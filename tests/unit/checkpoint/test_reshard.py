"""A checkpoint in another layout is bit for bit the same, and cut and shared as its ranks would."""

from __future__ import annotations

import json
import shlex
import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.models import drawn_gpt
from tests.unit.checkpoint.reshard_fixtures import (
    GPT2,
    LAYOUTS,
    LLAMA,
    STEP,
    VOCABULARY,
    checkpoint_of,
    config_of,
    make_run,
    random_fragments,
    reshard,
    same,
    seal,
    tensors_of,
    words,
)
from trainer.checkpoint.fragments import TensorFolder
from trainer.checkpoint.manifest import MANIFEST, check_content, read_manifest
from trainer.checkpoint.placement import Placement
from trainer.cli import main
from trainer.config.compose import compose, differences, from_yaml, recompose, to_yaml
from trainer.config.plan import make_plan
from trainer.config.schema import CheckpointConfig, LayoutConfig, ModelConfig, PipelineSchedule, QueryKeyNorm
from trainer.errors import CheckpointError
from trainer.mesh import Mesh
from trainer.resharding import MAY_CHANGE
from trainer.run_paths import CONFIG, TENSORS
from trainer.tensor_parallel.shard import ShardSpec, shard, shard_spec
from trainer.topology.groups import FakeGroup

SHARED = replace(GPT2, num_key_value_heads=1, query_key_norm=QueryKeyNorm.full, head_bias=True, embedding_norm=True)
"""Keys and values that two ranks share, and a tied head with a tensor of its own."""
TENSOR_FILE = f"{TENSORS}/rank_00000.safetensors"


@pytest.mark.parametrize("model", [GPT2, LLAMA, SHARED], ids=["tied", "untied", "shared heads"])
def test_through_all_layouts_and_back(tmp_path: Path, model: ModelConfig) -> None:
    first = make_run(tmp_path / "start", model)
    expected, original = tensors_of(first), load_file(first / TENSOR_FILE)
    names = ["start", *LAYOUTS, "1x1x1-again"]
    for before, after in pairwise(names):
        assert reshard(tmp_path / before, tmp_path / after, *LAYOUTS.get(after, words())) == 0
        found = checkpoint_of(tmp_path / after)
        assert same(tensors_of(found), expected), f"{before} -> {after}"
        check_content(found, read_manifest(found))
    again = load_file(checkpoint_of(tmp_path / names[-1]) / TENSOR_FILE)
    # One rank writes whole tensors: nothing but the order in the file may have changed.
    assert same(again, original)


def test_frozen_tensors_have_no_moments_in_any_layout(tmp_path: Path) -> None:
    fragments = [f for f in random_fragments(config_of()) if f.kind == "weight" or "blocks.0" not in f.spec.name]
    expected = tensors_of(make_run(tmp_path / "start", fragments=fragments))
    assert reshard(tmp_path / "start", tmp_path / "target", *LAYOUTS["2x2x2"]) == 0
    found = checkpoint_of(tmp_path / "target")
    assert same(tensors_of(found), expected)
    with pytest.raises(CheckpointError, match="holds only its weight: it was not trained; freeze it again"):
        TensorFolder(found, read_manifest(found).files).read("exp_avg", "blocks.0.mlp.up.weight")


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_file_holds_what_its_rank_computes_with(source: Path, tmp_path: Path, name: str) -> None:
    assert reshard(source, tmp_path / "target", *LAYOUTS[name]) == 0
    found = checkpoint_of(tmp_path / "target")
    plan = make_plan(from_yaml((found / CONFIG).read_text()), VOCABULARY)
    grid = Mesh(plan.pipeline_parallel_size, plan.data_parallel_size, plan.tensor_parallel_size)
    assert sorted(p.name for p in (found / TENSORS).iterdir()) == [
        f"rank_{r:05d}.safetensors" for r in range(grid.size)
    ]
    whole = tensors_of(checkpoint_of(source))
    places: Counter[str] = Counter()
    for rank in range(grid.size):
        at = grid.coordinate(rank)
        specs = _specs_of(model=GPT2, tp=plan.tensor_parallel_size, tp_rank=at.tp_rank)
        for key, values in load_file(found / TENSORS / f"rank_{rank:05d}.safetensors").items():
            kind, tensor, tp_rank, start = key.split("/")
            spec = specs[tensor]
            assert int(tp_rank) == (at.tp_rank if spec.dim is not None else 0)
            assert at.stage == _stage_of(tensor, plan.pipeline_parallel_size)
            padded = torch.zeros(spec.global_shape)
            padded[tuple(slice(n) for n in spec.unpadded_shape)] = whole[f"{kind}/{tensor}"]
            mine = shard(padded, spec, at.tp_rank, plan.tensor_parallel_size).reshape(-1)
            assert torch.equal(values, mine[int(start) : int(start) + values.numel()]), key
            places[f"{kind}/{tensor}"] += values.numel()
            # Replicas share the work evenly.
            assert abs(values.numel() - mine.numel() / grid.data_parallel_size) < 1
    sizes = {key: _padded_numel(key, plan.tensor_parallel_size) for key in whole}
    assert places == Counter(sizes)


def _specs_of(model: ModelConfig, tp: int, tp_rank: int) -> dict[str, ShardSpec]:
    """How layers themselves cut their tensors."""
    gpt = drawn_gpt(config_of(model).model, VOCABULARY, 3, FakeGroup(tp_rank, tp))
    return {shard_spec(p).name: shard_spec(p) for p in gpt.parameters()}


def _stage_of(tensor: str, pp: int) -> int:
    """Two blocks over at most two stages."""
    return 0 if pp == 1 or tensor.startswith(("embedding", "position", "blocks.0")) else 1


def _padded_numel(key: str, tp: int) -> int:
    spec = _specs_of(GPT2, tp, 0)[key.split("/")[1]]
    return torch.Size(spec.global_shape).numel()


@pytest.mark.parametrize("model", [GPT2, LLAMA], ids=["tied", "untied"])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_cuts_and_padding_are_those_of_the_layers(model: ModelConfig, tp: int) -> None:
    plan = make_plan(replace(config_of(model), layout=LayoutConfig(tensor_parallel_size=tp)), VOCABULARY)
    there, here = _specs_of(model, 1, 0), _specs_of(model, tp, 0)
    placement = Placement(plan)
    assert {name: placement.spec(spec) for name, spec in there.items()} == here
    assert any(spec.padding for spec in here.values())


def test_stages_of_dualpipev_are_folded() -> None:
    layout = LayoutConfig(pipeline_parallel_size=2, pipeline_schedule=PipelineSchedule.dualpipev)
    placement = Placement(make_plan(replace(config_of(LLAMA), layout=layout), VOCABULARY))
    stages = {
        f"blocks.{i}": next(placement.shares(ShardSpec(f"blocks.{i}.mlp_norm.weight", (4,)))).rank for i in range(4)
    }
    assert stages == {"blocks.0": 0, "blocks.1": 1, "blocks.2": 1, "blocks.3": 0}
    assert next(placement.shares(ShardSpec("head.weight", (4,)))).rank == 0


def test_a_share_that_is_empty_is_nobodys() -> None:
    plan = make_plan(replace(config_of(), layout=LayoutConfig(data_parallel_size=4)), VOCABULARY)
    shares = list(Placement(plan).shares(ShardSpec("final_norm.weight", (3,))))
    assert [(share.rank, share.start, share.numel) for share in shares] == [(1, 0, 1), (2, 1, 1), (3, 2, 1)]


def test_the_run_folder_is_ready_to_go_on(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "a b" / "target"
    assert reshard(source, target, "layout=tp2_pp2") == 0
    said = capsys.readouterr().out
    config = from_yaml((target / CONFIG).read_text())
    assert config == from_yaml((checkpoint_of(target) / CONFIG).read_text())
    assert (config.layout.pipeline_parallel_size, config.layout.tensor_parallel_size) == (2, 2)
    assert config.run_dir == str(target)
    assert json.loads((target / "plan.json").read_text())["layout"]["world_size"] == 4
    assert (target / "checkpoints" / "latest").read_text() == f"step_{STEP}\n"
    assert (target / "tokenizer" / "kind.json").read_text() == '{"kind": "bytes"}'
    assert sorted(p.name for p in (target / "checkpoints").iterdir()) == ["latest", f"step_{STEP}"]
    command = next(line for line in said.splitlines() if line.startswith("go on with: trident train "))
    # Tests set WANDB_MODE, which `auto` follows.
    assert differences(compose(shlex.split(command)[5:]), config) == ["logging.wandb"]


def test_the_manifest_says_where_it_came_from(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reshard(checkpoint_of(source), tmp_path / "target", *LAYOUTS["2x2x2"]) == 0
    before, after = read_manifest(checkpoint_of(source)), read_manifest(checkpoint_of(tmp_path / "target"))
    assert replace(after, layout=before.layout, files=before.files) == before
    layout = dict(after.layout)
    assert layout.pop("resharded_from") == "1 x 1 x 1, ZeRO-0"
    sizes = {f"{a}_parallel_size": 2 for a in ("pipeline", "tensor", "data")}
    assert layout == {**before.layout, **sizes, "zero_stage": 1}
    capsys.readouterr()
    assert main(["checkpoint", "show", str(tmp_path / "target")]) == 0
    assert "resharded_from 1 x 1 x 1, ZeRO-0" in capsys.readouterr().out
    assert main(["checkpoint", "verify", str(tmp_path / "target")]) == 0


def test_keys_that_are_not_given_stay(source: Path, tmp_path: Path) -> None:
    assert reshard(source, tmp_path / "first", *words(2, 2, 2, "layout.sequence_parallel=true")) == 0
    assert reshard(tmp_path / "first", tmp_path / "second", "layout.data_parallel_size=1") == 0
    layout = read_manifest(checkpoint_of(tmp_path / "second")).layout
    assert (layout["pipeline_parallel_size"], layout["tensor_parallel_size"]) == (2, 2)
    assert (layout["data_parallel_size"], layout["sequence_parallel"]) == (1, True)
    assert layout["resharded_from"] == "2 x 2 x 2, ZeRO-1"


def test_replicas_that_a_launcher_gave_are_known(source: Path, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(source)
    manifest = read_manifest(checkpoint)
    assert from_yaml((checkpoint / CONFIG).read_text()).layout.data_parallel_size is None
    layout = {**manifest.layout, "data_parallel_size": 4}
    (checkpoint / MANIFEST).write_text(replace(manifest, layout=layout).to_json())
    assert reshard(source, tmp_path / "target", "layout.tensor_parallel_size=2") == 0
    assert read_manifest(checkpoint_of(tmp_path / "target")).layout["data_parallel_size"] == 4
    assert reshard(source, tmp_path / "group", "layout=tp2") == 0
    assert read_manifest(checkpoint_of(tmp_path / "group")).layout["data_parallel_size"] == 1


def test_a_group_gives_all_of_its_keys() -> None:
    config = recompose(config_of(), words(2, 2, 2, "layout.sequence_parallel=true"), MAY_CHANGE)
    assert recompose(config, ["layout=dp2", "zero.stage=0"], MAY_CHANGE) == replace(
        config, layout=LayoutConfig(data_parallel_size=2), zero=replace(config.zero, stage=0)
    )


@pytest.mark.parametrize("resume", ["never", "runs/elsewhere"])
def test_how_the_source_began_is_not_how_the_target_does(tmp_path: Path, resume: str) -> None:
    checkpoint = make_run(tmp_path / "source")
    config = replace(from_yaml((checkpoint / CONFIG).read_text()), checkpoint=CheckpointConfig(resume=resume))
    (checkpoint / CONFIG).write_text(to_yaml(config))
    seal(checkpoint, STEP, config)
    assert reshard(tmp_path / "source", tmp_path / "target", "layout=tp2") == 0
    assert from_yaml((tmp_path / "target" / CONFIG).read_text()).checkpoint.resume == "auto"


def test_the_tokenizer_comes_from_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = make_run(tmp_path / "run")
    shutil.copytree(checkpoint, tmp_path / "lonely" / "x" / "step_7")
    (tmp_path / "lonely" / "tokenizer").mkdir()
    (tmp_path / "lonely" / "tokenizer" / "tokenizer.json").write_text("of somebody else")
    assert reshard(tmp_path / "lonely" / "x" / "step_7", tmp_path / "target", "layout=tp2") == 0
    for folder in (tmp_path / "target", checkpoint_of(tmp_path / "target")):
        assert [path.name for path in (folder / "tokenizer").iterdir()] == ["kind.json"]
    assert "tokenizer/kind.json" in read_manifest(checkpoint_of(tmp_path / "target")).files


def test_a_checkpoint_without_a_tokenizer_stays_without(tmp_path: Path) -> None:
    checkpoint = make_run(tmp_path / "run")
    shutil.rmtree(checkpoint / "tokenizer")
    seal(checkpoint, 7, from_yaml((checkpoint / CONFIG).read_text()))
    shutil.copytree(checkpoint, tmp_path / "lonely" / "x" / "step_7")
    assert reshard(tmp_path / "lonely" / "x" / "step_7", tmp_path / "target", "layout=tp2") == 0
    assert not (tmp_path / "target" / "tokenizer").exists()
