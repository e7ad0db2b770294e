"""What a model is, as data: its tensors, FLOPs and kept elements, and when two are the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers.tiny_models import TINY, TINY_LLAMA
from trainer.config.models import changed_keys, make_execution, make_model, resolved
from trainer.config.schema import ActivationKind, ModelConfig, NormKind, RecomputeKind
from trainer.spec.execution import Execution
from trainer.spec.model import LayerKind, Wiring
from trainer.spec.parts import Norm
from trainer.spec.rope import Rope
from trainer.spec.tensors import Cut, Init, TensorSpec

VOCABULARY = 29


def test_a_tensor_is_named_once_with_all_that_is_known_of_it() -> None:
    model = make_model(TINY_LLAMA, VOCABULARY)
    block = [name for name in model.tensors if name.startswith("blocks.1.")]
    assert block == [
        "blocks.1.attention_norm.weight",
        "blocks.1.mlp_norm.weight",
        "blocks.1.attention.qkv.weight",
        "blocks.1.attention.output.weight",
        "blocks.1.mlp.gate_up.weight",
        "blocks.1.mlp.down.weight",
    ]
    qkv, output = (model.tensors[f"blocks.1.attention.{name}.weight"] for name in ("qkv", "output"))
    assert qkv == TensorSpec(qkv.name, (48, 16), Init.normal, Cut(0, (16, 16, 16), heads=(4, 4, 4)))
    assert output == TensorSpec(output.name, (16, 16), Init.residual, Cut(1, (16,)))
    norm = model.tensors["final_norm.weight"]
    assert norm == TensorSpec("final_norm.weight", (16,), Init.ones, decays=False)
    with pytest.raises(ValueError, match=r"sections of w must add up to 4, but are \(2, 3\)"):
        TensorSpec("w", (4, 2), Init.zeros, Cut(0, (2, 3)))


def test_padding_is_of_the_layout_and_only_of_a_vocabulary() -> None:
    model = make_model(TINY, VOCABULARY)
    embedding, qkv = model.tensors["embedding.weight"], model.tensors["blocks.0.attention.qkv.weight"]
    assert (embedding.shape, embedding.padding(16)) == ((29, 16), 3)
    assert (qkv.padding(16), qkv.local_numel(2, 16)) == (0, qkv.numel // 2)
    assert embedding.local_numel(2, 16) == 16 * 16
    assert make_execution(TINY, 2).padded(VOCABULARY) == 32
    assert Execution(8, vocab_unit=1).padded(29) == 29


@pytest.mark.parametrize("wiring", list(Wiring))
def test_a_block_has_the_norms_of_its_wiring(wiring: Wiring) -> None:
    block = replace(make_model(TINY_LLAMA, VOCABULARY).blocks[0], wiring=wiring)
    names = [tensor.name for tensor in block.tensors("b") if "norm" in tensor.name]
    assert names == [f"b.{norm}.weight" for norm in block.norm_names]
    # Input, output and normalized values of each norm, by the streams that are shared.
    streams = {"pre": 6, "post": 6, "output": 6, "sandwich": 10, "parallel": 3, "parallel_two_norms": 5}
    assert block.kept.whole == streams[wiring.value] * 16
    assert block.kept.cut == 6 * 16 + 4 * 24


def test_norms_by_what_they_have() -> None:
    norm = Norm(NormKind.layernorm, 8, 1e-5, bias=True)
    assert [(t.name, t.init) for t in norm.tensors("n")] == [("n.weight", Init.ones), ("n.bias", Init.zeros)]
    assert [t.init for t in replace(norm, offset=1.0, bias=False).tensors("n")] == [Init.zeros]
    assert not list(replace(norm, weight=False, bias=False).tensors("n"))


def test_blocks_may_differ() -> None:
    model = make_model(replace(TINY_LLAMA, num_layers=3, sliding_window=4), VOCABULARY)
    first, second, _ = model.blocks
    full = replace(first, attention=replace(first.attention, window=None, rope=None))
    mixed = replace(model, blocks=(first, full, first))
    kinds = [layer.kind for layer in mixed.layers]
    assert kinds == [
        LayerKind.embedding,
        LayerKind.position,
        *[LayerKind.block] * 3,
        LayerKind.final_norm,
        LayerKind.head,
    ]
    flops = [layer.forward_flops(12) for layer in mixed.layers]
    assert flops[3] - flops[2] == 4 * 16 * (12 - 4)
    assert mixed.flops_per_token(12) == 3 * sum(flops)
    assert mixed.parameter_count == model.parameter_count
    assert mixed != model
    assert second.kept.cut - full.kept.cut == 32
    assert "final_norm" not in [layer.name for layer in replace(model, final_norm=None).layers]


def test_how_it_is_computed_is_no_part_of_what_it_is() -> None:
    changed = {
        "dropout": 0.5,
        "attention_dropout": 0.5,
        "init_std": 1.0,
        "recompute": RecomputeKind.full,
        "fused_loss": False,
        "vocab_pad_multiple": 64,
        "name": "other",
    }
    assert make_model(replace(TINY, **changed), VOCABULARY) == make_model(TINY, VOCABULARY)  # type: ignore[arg-type]
    assert changed_keys(replace(TINY, **changed), TINY) == {}  # type: ignore[arg-type]
    assert make_execution(replace(TINY, init_std=0.4, num_layers=8), 1).std(Init.residual) == 0.1


@pytest.mark.parametrize(
    ("here", "there", "found"),
    [
        (TINY, {"seq_length": 24}, {"seq_length": (24, 12)}),
        (TINY_LLAMA, {"seq_length": 24}, {}),
        (TINY_LLAMA, {"rope_theta": 5e5}, {"rope_theta": (5e5, 1e4)}),
        (TINY, {"rope_theta": 5e5}, {}),
        (TINY, {"norm_eps": 1e-6, "sliding_window": 4}, {"norm_eps": (1e-6, 1e-5), "sliding_window": (4, None)}),
        (TINY, {"num_key_value_heads": 4, "head_dim": 4}, {}),
        (TINY, {"hidden_size": 32}, {"hidden_size": (32, 16), "head_dim": (8, 4), "ffn_hidden_size": (128, 64)}),
        (TINY, {"activation": ActivationKind.relu}, {"activation": (ActivationKind.relu, ActivationKind.gelu_tanh)}),
    ],
)
def test_keys_in_which_models_differ(here: ModelConfig, there: dict[str, object], found: dict[str, object]) -> None:
    other = replace(here, **there)  # type: ignore[arg-type]
    assert changed_keys(other, here) == found
    assert (make_model(other, VOCABULARY) == make_model(here, VOCABULARY)) == (not found)
    assert resolved(here).num_key_value_heads == 4


def test_frozen_tensors_are_those_whose_names_begin_so() -> None:
    model, some = make_model(TINY, VOCABULARY), Execution(8, frozen=("blocks.0", "embedding"))
    frozen = {name for name, tensor in model.tensors.items() if not some.trains(tensor)}
    assert frozen == {name for name in model.tensors if name.startswith(("blocks.0.", "embedding."))}
    assert len(frozen) > 1
    tens = make_model(replace(TINY, num_layers=11), VOCABULARY)
    second = Execution(8, frozen=("blocks.1", "final_norm.weight"))
    assert {name for name, tensor in tens.tensors.items() if not second.trains(tensor)} == {
        *(name for name in tens.tensors if name.startswith("blocks.1.")),
        "final_norm.weight",
    }
    assert not any(Execution(8).trains(replace(t, trainable=False)) for t in model.tensors.values())
    assert Rope(1e4, 4) != Rope(1e4, 2)
