"""A GGUF file (llama.cpp's format) as a Hugging Face folder, as transformers reads it: its numbers become fp32.

transformers leaves out what it does not know, without a word. What is left out is refused here.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from trainer.config.hf_folder import HF_CONFIG, read_hf_model
from trainer.errors import CheckpointError, ConfigError, first_line
from trainer.interchange.weight_index import SINGLE
from trainer.log import warn

_EXTRA = "pip install 'trident-trainer[gguf]'"
_HEAD_SIZES = ("attention.key_length", "attention.value_length")
_NOT_OF_THE_MODEL = ("general", "tokenizer", "quantize", "split", "GGUF")
"""First parts of names of what says nothing of how it computes."""


@contextmanager
def unpacked(path: Path, key: str, beside: Path) -> Iterator[Path]:
    """Yield a folder with the model and the tokenizer of a file; it is gone afterwards. Takes the memory of the model.

    Args:
        path: the file.
        key: the word that it was written for; errors name it.
        beside: an existing folder on a disk with room for the weights in fp32.

    Raises:
        ConfigError: transformers cannot read the architecture, or leaves out something that the file says.
        CheckpointError: the file is damaged, or lacks a tensor.
    """
    fields, tensors = _read(path)
    architecture = str(fields.get("general.architecture"))
    _check(path, key, architecture, fields, tensors)
    with tempfile.TemporaryDirectory(dir=beside, prefix=".gguf_") as temporary:
        # The model takes its name from its folder.
        folder = Path(temporary) / path.stem
        _write(path, folder)
        _check_sizes(folder, key, path, architecture, fields)
        yield folder


def _read(path: Path) -> tuple[dict[str, object], list[str]]:
    """Return what the file says of the model, and the names of its tensors."""
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(f"{path} is GGUF, and the package gguf must be installed to read it: {_EXTRA}") from error
    try:
        reader: Any = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if "tokenizer." not in name}
        return fields, [tensor.name for tensor in reader.tensors]
    # The library raises whatever its parts raise.
    except Exception as error:
        raise CheckpointError(f"{path} must be a GGUF file, but cannot be read: {first_line(error)}") from error


def _check(path: Path, key: str, architecture: str, fields: Mapping[str, object], tensors: list[str]) -> None:
    """Refuse what transformers would leave out."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    mapping: Mapping[str, Any] = GGUF_CONFIG_MAPPING
    known = mapping.get(architecture)
    if known is None:
        readable = ", ".join(sorted(name for name in mapping if name != "general"))
        raise ConfigError(
            f"{key} must be of an architecture that transformers reads from GGUF ({readable}), but {path} is of "
            f"{architecture}; give its safetensors"
        )
    left_out = [
        f"{name} = {value}"
        for name, value in fields.items()
        if name.partition(".")[0] not in _NOT_OF_THE_MODEL
        and not _is_read(name.removeprefix(f"{architecture}."), value, known)
    ]
    left_out += [name for name in tensors if name.startswith(("rope_freqs", "rope_factors"))]
    if left_out:
        raise ConfigError(
            f"{key} must say nothing that transformers leaves out when it reads GGUF, but {path} has {left_out[0]}; "
            "give its safetensors"
        )


def _is_read(name: str, value: object, known: Mapping[str, object]) -> bool:
    """Return whether transformers reads a value, or it is checked here, or it is as if it were not there."""
    is_none = name == "rope.scaling.type" and value == "none"
    return name in known or name in _HEAD_SIZES or is_none


def _write(path: Path, folder: Path) -> None:
    import torch
    import transformers
    from safetensors.torch import save_file

    # The library's own types say less than it returns.
    library: Any = transformers
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    try:
        # Its own bar cannot be switched off.
        with redirect_stderr(io.StringIO()):
            model, told = library.AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32, output_loading_info=True
            )
        absent = sorted(told["missing_keys"])
        if not absent:
            folder.mkdir()
            # Not `save_pretrained`, which takes the model for a quantised one still.
            own = {name: one for name, one in model.state_dict().items() if name not in model.all_tied_weights_keys}
            save_file(own, folder / SINGLE, metadata={"format": "pt"})
            _write_config(model, folder)
    # The library raises whatever its parts raise.
    except Exception as error:
        raise CheckpointError(f"{path} must be a model that transformers loads, but: {first_line(error)}") from error
    if absent:
        raise CheckpointError(f"{path} must hold every tensor that transformers reads, but {absent[0]} is missing")
    try:
        library.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
    # The library raises whatever its parts raise.
    except Exception as error:
        warn(f"{path} has no tokenizer that transformers reads, so the run has none: {first_line(error)}")


def _write_config(model: Any, folder: Path) -> None:
    said = {key: value for key, value in model.config.to_dict().items() if not key.startswith("_")}
    said.pop("quantization_config", None)
    config = {**said, "architectures": [type(model).__name__]}
    (folder / HF_CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")


def _check_sizes(folder: Path, key: str, path: Path, architecture: str, fields: Mapping[str, object]) -> None:
    """Compare sizes that the library takes as given with what the file says of them."""
    try:
        values = read_hf_model(folder, key).values
    except ConfigError as error:
        raise ConfigError([line.replace(str(folder / HF_CONFIG), str(path)) for line in error.problems]) from error
    head_dim = values["head_dim"]
    sizes = {**dict.fromkeys(_HEAD_SIZES, head_dim), "rope.dimension_count": values["rope_dims"] or head_dim}
    for name, size in sizes.items():
        said = fields.get(f"{architecture}.{name}", size)
        if said != size:
            raise ConfigError(
                f"{key} must say nothing that transformers leaves out when it reads GGUF, but {path} has "
                f"{architecture}.{name} = {said}, where it takes {size}; give its safetensors"
            )
