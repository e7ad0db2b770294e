"""GGUF files of tiny models, as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.torch import load_file

TOKENS = ["<unk>", "<s>", "<|endoftext|>", *"abcdefgh", "ab", "cd"]


def write_gguf(
    folder: Path,
    path: Path,
    extra: Mapping[str, object] | None = None,
    left_out: str = "",
    added: str = "",
    key_length: int | None = None,
    is_quantised: bool = False,
    split: str | None = None,
    merges: Sequence[str] = ("a b", "c d"),
) -> Path:
    """Write a Llama or Qwen2 folder as one file.

    Args:
        folder: the model, as transformers saves it.
        path: the file.
        extra: more keys of the architecture.
        left_out: tensor that is left out.
        added: tensor that is added.
        key_length: number that is said of a head's size; None: the right one.
        is_quantised: matrices in blocks of 32 numbers of 8 bits.
        split: way to split text before it is merged.
        merges: merges of the tokenizer, of tokens that may be missing.
    """
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    name = config["model_type"]
    arch = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}[name]
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(path, name)
    writer.add_name("tiny")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(key_length or head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    for key, value in (extra or {}).items():
        whole = f"{name}.{key}"
        if isinstance(value, str):
            writer.add_string(whole, value)
        elif isinstance(value, float):
            writer.add_float32(whole, value)
        else:
            writer.add_uint32(whole, int(str(value)))
    filler = [f"<t{index}>" for index in range(config["vocab_size"] - len(TOKENS))]
    writer.add_tokenizer_model("gpt2")
    if split is not None:
        writer.add_tokenizer_pre(split)
    writer.add_token_list([*TOKENS, *filler])
    writer.add_token_merges(list(merges))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for theirs, tensor in load_file(folder / "model.safetensors").items():
        mine = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert mine is not None
        values = tensor.float().numpy()
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
        for part, count in heads.items() if name == "llama" else ():
            if part in theirs:
                values = _halves_side_by_side(values, count)
        if mine == left_out:
            continue
        kind = gguf.GGMLQuantizationType.Q8_0
        if is_quantised and values.ndim == 2:
            writer.add_tensor(mine, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(mine, values)
    if added:
        writer.add_tensor(added, np.ones(head_dim // 2, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _halves_side_by_side(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Bring rows of a head into the order of the format, which rotates neighbours."""
    parts = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(1, 2).reshape(values.shape))
