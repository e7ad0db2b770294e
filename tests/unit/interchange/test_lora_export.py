"""Exports of LoRA runs: the folder that PEFT loads, and the whole model, beside the run's own logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.hf_families import VOCABULARY
from tests.helpers.lora import plan_for, save_base
from tests.helpers.parity import Case
from trainer.checkpoint.held_weights import open_weights
from trainer.checkpoint.manifest import Manifest, describe_layout
from trainer.checkpoint.origin import Found, Use, find_origin
from trainer.checkpoint.resume import base_of
from trainer.checkpoint.save import CheckpointWriter, Snapshot
from trainer.checkpoint.store import CheckpointStore, find_checkpoint
from trainer.config.compose import to_yaml
from trainer.config.plan import RunPlan
from trainer.config.schema import LoraConfig
from trainer.config.schema import LoraTarget as Target
from trainer.engine.face import Fragment
from trainer.errors import CheckpointError, ConfigError
from trainer.exporting import export_verb
from trainer.logits_check import WrittenModel, fixed_ids
from trainer.loop.state import TrainState
from trainer.tensor_parallel.shard import shard_spec_of
from trainer.topology.groups import SingleGroup

LOGITS = 1e-5
"""Largest difference in fp32, relative to the largest logit: sums in another order."""
CASES: dict[str, tuple[str, LoraConfig]] = {
    "a layer each": ("llama", LoraConfig(2, alpha=3.0)),
    "one adapter of several layers of theirs": (
        "llama",
        LoraConfig(2, targets=(Target.qkv, Target.gate_up), rank_stabilised=True),
    ),
    "several adapters of one layer of theirs": (
        "gpt2",
        LoraConfig(3, alpha=5.0, targets=(Target.q, Target.v, Target.output, Target.down)),
    ),
    "the same, scaled by the root": (
        "gpt_neox",
        LoraConfig(3, targets=(Target.q, Target.k, Target.up), rank_stabilised=True),
    ),
    "a fused layer, head by head": ("gpt_neox", LoraConfig(2, targets=(Target.qkv, Target.down))),
    "rotary pairs side by side": ("cohere", LoraConfig(2, targets=(Target.q, Target.k, Target.gate))),
}


def saved_run(base: Path, lora: LoraConfig, run: Path, with_base: bool = False) -> RunPlan:
    """Write the checkpoint of a LoRA run whose adapters are off their start."""
    plan = plan_for(base, lora, Case(zero=0), 1)
    found = find_origin(plan.config, run)
    assert found is not None
    source = open_weights_of(found, plan)
    fragments = []
    for seed, (name, tensor) in enumerate(plan.model.tensors.items()):
        spec = shard_spec_of(tensor, 1, 1)
        if tensor.is_adapter:
            generator = torch.Generator().manual_seed(seed)
            values = 0.1 * torch.randn(tensor.shape, generator=generator)
        elif with_base:
            values = source.read("weight", name)
        else:
            continue
        fragments.append(Fragment("weight", spec, 0, 1, 0, values.flatten()))
    manifest = Manifest(
        step=3,
        vocab_size=VOCABULARY,
        train_state=TrainState(step=3, sample_length=plan.execution.seq_length).to_dict(),
        scalars={},
        probe_loss=None,
        layout=describe_layout(plan),
        versions={},
        files={},
        base=None if with_base else base_of(found, None, SingleGroup()),
    )
    writer = CheckpointWriter(CheckpointStore(run), plan, SingleGroup())
    writer.write(Snapshot(manifest, to_yaml(plan.config), tuple(fragments)))
    return plan


def open_weights_of(found: Found, plan: RunPlan) -> Any:
    from trainer.checkpoint.held_weights import foreign_weights

    assert found.use is Use.weights
    return foreign_weights(found.path, plan.model)


def our_logits(run: Path, plan: RunPlan) -> torch.Tensor:
    path, manifest = find_checkpoint(run)
    written = WrittenModel(plan.config.model, VOCABULARY, open_weights(path, manifest, plan.model))
    return written.logits(ids_of(plan))


def ids_of(plan: RunPlan) -> torch.Tensor:
    return fixed_ids(VOCABULARY, plan.execution.seq_length)


def loaded(folder: Path) -> Any:
    import transformers

    # Its types say that `eval` is untyped.
    loader: Any = transformers.AutoModelForCausalLM
    return loader.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.mark.parametrize("name", CASES)
def test_both_exports_give_the_logits_of_the_run(name: str, tmp_path: Path) -> None:
    import peft

    family, lora = CASES[name]
    base, run = save_base(family, tmp_path / "base"), tmp_path / "run"
    plan = saved_run(base, lora, run)
    ours = our_logits(run, plan)
    assert export_verb([str(run), str(tmp_path / "adapters")], None) == 0
    assert export_verb([str(run), str(tmp_path / "merged"), "check=false"], "fp32", merges=True) == 0
    with torch.inference_mode():
        plain = loaded(base)(ids_of(plan)).logits
        assert (plain - ours).abs().max() > 1e-2
        adapted = peft.PeftModel.from_pretrained(loaded(base), tmp_path / "adapters")
        for model in (adapted, loaded(tmp_path / "merged")):
            atol = LOGITS * float(ours.abs().max())
            torch.testing.assert_close(model(ids_of(plan)).logits, ours, rtol=0, atol=atol)
    said = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(base)
    assert not any(path.name == "model.safetensors" for path in (tmp_path / "adapters").iterdir())


def test_a_whole_checkpoint_needs_no_base_and_one_of_adapters_is_small(tmp_path: Path) -> None:
    base, lora = save_base("llama", tmp_path / "base"), LoraConfig(2)
    plan = saved_run(base, lora, tmp_path / "run")
    saved_run(base, lora, tmp_path / "whole", with_base=True)
    small, whole = (
        sum(facts.size_bytes for facts in find_checkpoint(tmp_path / name)[1].files.values())
        for name in ("run", "whole")
    )
    adapters = sum(one.numel for one in plan.model.tensors.values() if one.is_adapter)
    base_numel = sum(one.numel for one in plan.model.base_tensors.values())
    assert small < 4 * adapters + 20_000 < 4 * base_numel < whole
    ours = our_logits(tmp_path / "run", plan)
    base.rename(tmp_path / "elsewhere")
    torch.testing.assert_close(our_logits(tmp_path / "whole", plan), ours, rtol=0, atol=0)
    path, manifest = find_checkpoint(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"holds adapters alone, and .* but .*base does not exist"):
        open_weights(path, manifest, plan.model)
    moved = open_weights(path, manifest, plan.model, str(tmp_path / "elsewhere"))
    assert moved.read("weight", "final_norm.weight").numel() == plan.model.hidden_size


def test_a_base_that_has_changed_is_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    base, run = save_base("llama", tmp_path / "base"), tmp_path / "run"
    saved_run(base, LoraConfig(2), run)
    file = base / "model.safetensors"
    held = load_file(file)
    held["model.norm.weight"] += 1
    save_file(held, file, metadata={"format": "pt"})
    for merges in (False, True):
        with pytest.raises(
            CheckpointError, match=r"they are added to must be as it was, but .*its content has changed"
        ):
            export_verb([str(run), str(tmp_path / "out")], None, merges=merges)
    (base / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"must be as it was in .*, but .*config.json must have"):
        export_verb([str(run), str(tmp_path / "out")], None)
    assert not (tmp_path / "out").exists()


def test_only_adapters_can_be_merged(tmp_path: Path) -> None:
    saved_run(save_base("llama", tmp_path / "base"), LoraConfig(), tmp_path / "run", with_base=True)
    with pytest.raises(ConfigError, match=r"--merged needs a checkpoint of a LoRA run"):
        export_verb([str(tmp_path / "run"), str(tmp_path / "out")], None, merges=True)
