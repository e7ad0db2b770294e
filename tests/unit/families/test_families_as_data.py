"""The data of the families: permutations, configs in both directions, and every key of transformers' classes."""

from __future__ import annotations

import ast
import inspect
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.hf_families import TINY, Tiny, hf_config
from trainer.config.hf_export import express
from trainer.config.hf_folder import model_of, plain_values, read_hf_model
from trainer.config.models import changed_keys, make_model
from trainer.config.schema import ModelConfig, RopeScaling, RopeScalingKind
from trainer.errors import ConfigError
from trainer.families.family import Family
from trainer.families.layouts import Grouped, Link, Rotated, Same, Stacked
from trainer.families.registry import FAMILIES, MISSING, family_of
from trainer.interchange.linked_names import sections_of

FAMILY = {family.architecture: family for family in FAMILIES}


def read(tiny: Tiny) -> tuple[Family, ModelConfig]:
    family = FAMILY[tiny.architecture]
    return family, model_of(family.read(tiny.arguments))


def test_every_family_has_a_tiny_model_and_a_name_of_its_own() -> None:
    assert {tiny.architecture for tiny in TINY.values()} == set(FAMILY)
    assert len(FAMILY) == len(FAMILIES) == len({family.name for family in FAMILIES})
    assert not set(MISSING) & set(FAMILY)


@pytest.mark.parametrize("name", TINY)
def test_links_are_permutations_of_all_elements_in_both_directions(name: str) -> None:
    family, model = read(TINY[name])
    spec = make_model(model, model.vocab_size or 0)
    seen: set[str] = set()
    for ours, link in family.links_of(plain_values(model), list(spec.tensors)).items():
        tensor = spec.tensors[ours]
        sections = sections_of(tensor)
        rows, shapes = link.rows(tensor.shape, sections), link.shapes(tensor.shape, sections)
        numbers = np.arange(math.prod(tensor.shape)).reshape(tensor.shape)
        theirs = [np.full(shape, -1) for shape in shapes]
        for index, span in enumerate(rows):
            for mine, other in link.pairs(index, numbers[span], theirs[index]):
                assert mine.shape == other.shape
                other[...] = mine
        assert sorted(np.concatenate([part.ravel() for part in theirs])) == list(range(numbers.size)), ours
        back = np.full(tensor.shape, -1)
        for index, span in enumerate(rows):
            for mine, other in link.pairs(index, back[span], theirs[index]):
                mine[...] = other
        assert (back == numbers).all(), ours
        assert not seen & set(link.theirs), ours
        seen |= set(link.theirs)


@pytest.mark.parametrize("name", TINY)
def test_a_config_that_is_written_reads_as_the_same_model(name: str) -> None:
    family, model = read(TINY[name])
    written = json.loads(json.dumps(family.write(plain_values(model))))
    back = model_of(family.read(written))
    assert make_model(back, 1) == make_model(model, 1), changed_keys(back, model)
    assert (back.vocab_size, back.seq_length, back.init_std) == (model.vocab_size, model.seq_length, model.init_std)
    assert family_of(written) is family
    assert family.unread(written) == []


@pytest.mark.parametrize("name", TINY)
def test_transformers_reads_what_is_written_as_the_same_config(name: str) -> None:
    family, model = read(TINY[name])
    expected = hf_config(TINY[name])
    written = json.loads(json.dumps(family.write(plain_values(model))))
    ids = {key: getattr(expected, key) for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
    found = type(expected)(**{**written, **ids})
    told = {key for entry in family.entries for key in entry.defaults}
    free = ("dropout", "pdrop", "max_window_layers", "rope_scaling", "sliding_window_pattern", "summary_")
    for key in told & set(vars(expected)):
        # A null stands for a number that is written.
        if not any(word in key for word in free) and getattr(expected, key) is not None:
            assert same(getattr(found, key), getattr(expected, key)), key


def same(found: Any, expected: Any) -> bool:
    """Return whether a value is what was expected; of a mapping, whether it has everything that was."""
    if isinstance(expected, dict):
        return all(same(found.get(key), value) for key, value in expected.items() if value is not None)
    return bool(found == pytest.approx(expected, rel=1e-12) if isinstance(expected, float) else found == expected)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.architecture)
def test_every_key_of_transformers_class_is_known_with_its_default(family: Family) -> None:
    import transformers

    plain = getattr(transformers, family.architecture).config_class()
    keys = dict(plain.to_dict())
    assert family.unread(keys) == []
    # What the class itself makes of its defaults must read as what is read without a word.
    told = {key: value for key, value in keys.items() if value is not None}
    first, second = (model_of(family.read(config)) for config in (told, {}))
    assert make_model(first, 1) == make_model(second, 1)
    assert (first.vocab_size, first.seq_length, first.init_std) == (
        second.vocab_size,
        second.seq_length,
        second.init_std,
    )


def test_rotated_pairs_that_are_half_a_head_apart_here_lie_side_by_side_there() -> None:
    heads, dims = 3, 4
    ours = np.arange(heads * dims * 2).reshape(heads * dims, 2)
    theirs = np.full(ours.shape, -1)
    for mine, other in Rotated(dims, dims).pairs(ours, theirs):
        other[...] = mine
    assert theirs[:4, 0].tolist() == [ours[0, 0], ours[2, 0], ours[1, 0], ours[3, 0]]


def test_rows_of_each_head_are_sorted_by_kind() -> None:
    ours = np.array([[number] for number in (0, 1, 10, 11, 20, 21)])
    theirs = np.full((6, 1), -1)
    for mine, other in Grouped(2, (1, 1, 1), 1).pairs(ours, theirs):
        other[...] = mine
    assert theirs.ravel().tolist() == [0, 10, 20, 1, 11, 21]


def test_a_stack_has_as_many_parts_as_the_tensor() -> None:
    link = Link("x", ("q", "k"), Stacked((Same(), Same())))
    assert link.shapes((5, 2), (3, 2)) == ((3, 2), (2, 2))
    with pytest.raises(ValueError, match="must have 2 fused parts, but has 3"):
        link.rows((5, 2), (3, 1, 1))


LLAMA: dict[str, Any] = {"architectures": ["LlamaForCausalLM"]}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["NobodyForCausalLM"]}, "but is NobodyForCausalLM"),
        ({"model_type": "nobody"}, "but is model_type=nobody"),
        ({"architectures": ["NobodyForCausalLM"], "auto_map": {}}, "trust_remote_code"),
        ({"architectures": ["Gemma2ForCausalLM"]}, "a soft cap of the scores"),
        ({"architectures": ["GptOssForCausalLM"]}, "attention sinks"),
        ({"architectures": ["DeepseekV3ForCausalLM"]}, "latent attention (MLA)"),
        ({**LLAMA, "hidden_act": "mish"}, "hidden_act must be one of"),
        ({**LLAMA, "rope_scaling": {"rope_type": "odd", "factor": 2.0}}, "rope_type must be one of"),
        ({**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 2.0, "odd": 1}}, "but has ['odd']"),
        ({**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "but lacks ['low_freq_factor', "),
        ({**LLAMA, "rope_scaling": {"type": "linear"}}, "rope_type=linear must have the keys factor, but lacks"),
        ({**LLAMA, "rope_parameters": 7}, "rope_parameters must be a mapping"),
        ({**LLAMA, "rope_parameters": {"rope_type": "default", "factor": 2.0}}, "but has ['factor']"),
        ({**LLAMA, "rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor must be 1"),
        (
            {**LLAMA, "soft_cap": 30.0},
            "soft_cap must not be there, since transformers' LlamaForCausalLM does not read it",
        ),
        ({**LLAMA, "rope_interleaved": True}, "rope_interleaved must not be there"),
        ({**LLAMA, "hidden_size": 30}, "hidden_size (30) must be divisible by num_attention_heads (32)"),
        ({"architectures": ["Phi3ForCausalLM"], "attention_bias": True}, "attention_bias must not be there"),
        ({"architectures": ["Olmo3ForCausalLM"], "rope_parameters": {"rope_theta": 7.0}}, "but has ['rope_theta']"),
        ({"architectures": ["OpenAIGPTLMHeadModel"], "afn": "gelu_new"}, "afn must be one of gelu, relu, silu, swish"),
        ({"architectures": ["Gemma3ForCausalLM"], "sliding_window_pattern": 0}, "sliding_window_pattern=0"),
        ({"architectures": ["Gemma3ForCausalLM"], "query_pre_attn_scalar": 0}, "query_pre_attn_scalar=0"),
        ({"architectures": ["Gemma3ForCausalLM"], "rope_parameters": {"sliding_attention": "x"}}, "rope_parameters="),
        ({"architectures": ["GraniteForCausalLM"], "logits_scaling": 0}, "logits_scaling=0"),
        ({"architectures": ["SmolLM3ForCausalLM"], "no_rope_layer_interval": 0}, "no_rope_layer_interval=0"),
        (
            {"architectures": ["GemmaForCausalLM"], "hidden_size": -4},
            "hidden_size must be a number that model.embedding_scale",
        ),
        ({**LLAMA, "num_attention_heads": "four"}, "model.num_attention_heads must be an integer"),
        (
            {"architectures": ["GPT2LMHeadModel"], "scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx must be false, since there is no option for",
        ),
        ({"architectures": ["PhiForCausalLM"], "qk_layernorm": True}, "qk_layernorm must be false"),
        ({"architectures": ["CohereForCausalLM"], "use_qk_norm": True}, "use_qk_norm must be false"),
        ({"architectures": ["FalconForCausalLM"], "alibi": True}, "alibi must be false"),
        ({"architectures": ["GPTJForCausalLM"], "rotary_dim": None}, "rotary_dim must be a number"),
        (
            {"architectures": ["OPTForCausalLM"], "word_embed_proj_dim": 512},
            "word_embed_proj_dim must be hidden_size (768), since there is no option for",
        ),
        ({"architectures": ["Qwen2ForCausalLM"], "layer_types": ["odd"]}, "layer_types must be a list"),
        ({"architectures": ["GPTNeoForCausalLM"], "num_layers": 3}, "attention_types must name global or local"),
        ({"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [1]}, "no_rope_layers must have"),
        (
            {"architectures": ["Gemma3ForCausalLM"], "attn_logit_softcapping": 50.0},
            "attn_logit_softcapping must be null",
        ),
    ],
)
def test_what_the_model_has_no_option_for_is_refused(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError) as caught:
        read_hf_model(tmp_path, "SRC")
    assert words in str(caught.value)
    assert all("\n" not in problem for problem in caught.value.problems)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.architecture)
@pytest.mark.parametrize("size", [0, -4])
def test_a_size_that_nothing_can_be_divided_by_is_refused(family: Family, size: int, tmp_path: Path) -> None:
    """Whatever its name; the error is one for users, and not of arithmetic."""
    for key in ("hidden_size", "n_embd", "num_attention_heads", "n_head", "num_heads", "num_hidden_layers"):
        if key not in family.defaults:
            continue
        (tmp_path / "config.json").write_text(json.dumps({"architectures": [family.architecture], key: size}))
        with pytest.raises(ConfigError):
            read_hf_model(tmp_path, "SRC")


def test_keys_of_published_files_that_change_nothing_are_left_alone() -> None:
    phi4_mini: dict[str, object] = {
        "attention_bias": False,
        "mlp_bias": False,
        "lm_head_bias": False,
        "full_attn_mod": 1,
    }
    gptj: dict[str, object] = {
        "rotary": True,
        "scale_attn_weights": True,
        "tokenizer_class": "X",
        "summary_type": "cls_index",
    }
    smollm2: dict[str, object] = {
        "rope_interleaved": False,
        "is_llama_config": True,
        "pretraining_tp": 1,
        "no_such_key": None,
    }
    files = {"Phi3": phi4_mini, "GPTJ": gptj, "Llama": smollm2}
    for name, keys in files.items():
        family = FAMILY[f"{name}ForCausalLM"]
        assert family.read(keys) == family.read({})


@pytest.mark.parametrize("kind", [RopeScalingKind.dynamic, RopeScalingKind.longrope, RopeScalingKind.yarn])
def test_a_scaling_whose_length_is_null_is_written_with_the_models(kind: RopeScalingKind) -> None:
    factors = (1.0,) * 4 if kind is RopeScalingKind.longrope else ()
    scaling = RopeScaling(kind, factor=2.0, short_factor=factors, long_factor=factors)
    phi3 = read(TINY["phi3"])[1]
    values = plain_values(replace(phi3, rope_scaling=scaling, seq_length=20))
    assert values["rope_scaling.original_length"] == 20
    assert FAMILY["Phi3ForCausalLM"].write(values)["original_max_position_embeddings"] == 20


def test_what_transformers_class_does_not_take_is_not_written() -> None:
    model = read(TINY["gemma3"])[1]
    with pytest.raises(ConfigError, match=r"Gemma3ForCausalLM, which has no model.attention_scale=0\.3"):
        express(replace(model, attention_scale=0.3), 67, {})
    # LLaMA's class refuses this width, whatever the size of a head; another one computes the same.
    llama = replace(read(TINY["llama"])[1], hidden_size=30)
    assert express(llama, 67, {"architectures": ["LlamaForCausalLM"]}).family is FAMILY["MistralForCausalLM"]


def test_both_spellings_of_rotary_positions_read_alike() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    old = {**LLAMA, "rope_theta": 500000.0, "rope_scaling": {"type": "llama3", **scaling}}
    new = {**LLAMA, "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, **scaling}}
    first, second = (model_of(family_of(config).read(config)) for config in (old, new))
    assert first == second
    assert first.rope_theta == 500000.0
    assert first.rope_scaling.original_length == 8192


def test_the_first_block_and_the_wiring_of_gemma_2_are_not_taken_for_others() -> None:
    """The same name means another norm in other families."""
    names = {}
    for architecture in ("LlamaForCausalLM", "Olmo2ForCausalLM", "GPTNeoXForCausalLM", "Gemma3ForCausalLM"):
        family, model = read(next(tiny for tiny in TINY.values() if tiny.architecture == architecture))
        links = family.links_of(plain_values(model), list(make_model(model, 1).tensors))
        names[architecture] = [
            ours for ours, link in links.items() if link.theirs[0].endswith("0.post_attention_layernorm.weight")
        ]
    assert names == {
        "LlamaForCausalLM": ["blocks.0.mlp_norm.weight"],
        "Olmo2ForCausalLM": ["blocks.0.attention_norm.weight"],
        "GPTNeoXForCausalLM": ["blocks.0.mlp_norm.weight"],
        "Gemma3ForCausalLM": ["blocks.0.attention_output_norm.weight"],
    }


OTHER_HEADS = {
    "GPT2LMHeadModel": {"hidden_dropout", "summary_last_dropout"},
    "OpenAIGPTLMHeadModel": {"summary_last_dropout"},
    "Gemma3ForCausalLM": {"get_text_config", "image_token_id", "mm_tokens_per_image", "text_config", "vision_config"},
}
"""What classes of the same file read that are no language models: heads for classification, and images."""
OF_THE_LIBRARY = {"use_return_dict", "is_causal"}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.architecture)
def test_every_key_that_transformers_model_reads_is_known(family: Family) -> None:
    """A model may read keys that its config class does not declare: a head_dim beside a LLaMA's."""
    import transformers

    model = getattr(transformers, family.architecture)
    read = keys_read(Path(inspect.getfile(model)).read_text())
    assert {"vocab_size", "hidden_size", "n_embd", "num_attention_heads"} & read
    told = {family.renamed.get(key, key) for key in read - OTHER_HEADS.get(family.architecture, set()) - OF_THE_LIBRARY}
    assert sorted(told - family.defaults.keys()) == []


def keys_read(source: str) -> set[str]:
    """Return the attributes of `config` and `self.config` that a file reads, by name or by getattr."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("config", "self.config"):
            found.add(node.attr)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            first, second, *_ = node.args
            if ast.unparse(first) in ("config", "self.config") and isinstance(second, ast.Constant):
                found.add(str(second.value))
    return found


@pytest.mark.parametrize("architecture", ["GPTNeoXForCausalLM", "StableLmForCausalLM", "FalconForCausalLM"])
def test_a_size_of_heads_that_transformers_reads_in_one_place_only_is_refused(architecture: str) -> None:
    tiny = next(tiny for tiny in TINY.values() if tiny.architecture == architecture)
    with pytest.raises(ConfigError, match=r"head_dim must be hidden_size / num_attention_heads \(8\)"):
        FAMILY[architecture].read({**tiny.arguments, "head_dim": 10})
    assert read(replace(tiny, arguments={**tiny.arguments, "head_dim": 8})) == read(tiny)


def test_a_usual_size_of_heads_is_not_written_and_another_one_is() -> None:
    usual, other = ({**TINY["granite"].arguments, "head_dim": size} for size in (8, 10))
    family = FAMILY["GraniteForCausalLM"]
    written = [family.write(plain_values(model_of(family.read(config)))) for config in (usual, other)]
    assert [config.get("head_dim") for config in written] == [None, 10]
    assert "head_dim" not in written[0], "a null is no number to transformers"
