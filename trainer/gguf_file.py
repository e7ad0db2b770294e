"""A GGUF file (llama.cpp's format) as a Hugging Face folder, as transformers reads it: its numbers become fp32.

transformers leaves out what it does not know, without a word. What is left out is refused here.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from trainer.config.hf_folder import HF_CONFIG, read_hf_model
from trainer.errors import CheckpointError, ConfigError, first_line
from trainer.families.registry import FAMILIES
from trainer.files import own_folder
from trainer.interchange.weight_index import SINGLE
from trainer.log import warn
from trainer.transformers_loading import check_whole, loading, quiet_library

_EXTRA = "pip install 'trident-trainer[gguf]'"
_KIND, _SPLIT = "tokenizer.ggml.model", "tokenizer.ggml.pre"
_HEAD_SIZES = ("attention.key_length", "attention.value_length")
_NOT_OF_THE_MODEL = ("general", "tokenizer", "quantize", "split", "GGUF")
"""First parts of names of what says nothing of how it computes."""


@contextmanager
def unpacked(path: Path, scratch: Path) -> Iterator[Path]:
    """Yield a folder with the model and the tokenizer of a file; it is gone afterwards. Takes the memory of the model.

    Args:
        path: the file.
        scratch: a folder to make, on a disk with room for the weights in fp32.

    Raises:
        ConfigError: transformers cannot read the architecture, or leaves out something that the file says; or another
            process has the folder.
        CheckpointError: the file is damaged, or lacks a tensor.
    """
    fields, tensors = _read(path)
    architecture = str(fields.get("general.architecture"))
    _check(path, architecture, fields)
    with own_folder(scratch, "DST"):
        # The model takes its name from its folder.
        folder = scratch / path.stem
        try:
            alone = _alone(path, scratch)
            _write(alone, path, tensors, folder)
            _check_sizes(folder, path, architecture, fields)
            _write_tokenizer(alone, path, folder, fields)
            yield folder
        # The folder will be gone when these are read.
        except ConfigError as error:
            raise ConfigError([_of_file(line, folder, path) for line in error.problems], error.hints) from error
        except CheckpointError as error:
            raise CheckpointError(_of_file(str(error), folder, path), error.hints) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _of_file(text: str, folder: Path, path: Path) -> str:
    """Return a text in which the file stands for the folder that was made of it."""
    return text.replace(str(folder / HF_CONFIG), str(path)).replace(str(folder), str(path))


def _alone(path: Path, temporary: Path) -> Path:
    """Return the file in a folder of its own: the library also reads what lies beside it."""
    alone = temporary / "alone"
    alone.mkdir()
    (alone / path.name).symlink_to(path)
    return alone / path.name


def _read(path: Path) -> tuple[dict[str, object], list[str]]:
    """Return what the file says of the model, and the names of its tensors."""
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(f"{path} is GGUF, and the package gguf must be installed to read it: {_EXTRA}") from error
    try:
        reader: Any = gguf.GGUFReader(path)
        names = [name for name in reader.fields if not name.startswith("tokenizer.") or name in (_KIND, _SPLIT)]
        fields = {name: reader.fields[name].contents() for name in names}
        return fields, [tensor.name for tensor in reader.tensors]
    # The library raises whatever its parts raise.
    except Exception as error:
        raise CheckpointError(f"{path} must be a GGUF file, but cannot be read: {first_line(error)}") from error


def _check(path: Path, architecture: str, fields: Mapping[str, object]) -> None:
    """Refuse what transformers would leave out."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    mapping: Mapping[str, Any] = GGUF_CONFIG_MAPPING
    ours = {family.model_type.removesuffix("_text") for family in FAMILIES}
    known = mapping.get(architecture) if architecture in ours else None
    if known is None:
        readable = ", ".join(sorted(name for name in mapping if name in ours))
        raise ConfigError(
            f"SRC must be of an architecture that can be read from GGUF ({readable}), but {path} is of "
            f"{architecture}; give its safetensors"
        )
    for name, value in fields.items():
        is_of_model = name.partition(".")[0] not in _NOT_OF_THE_MODEL
        if is_of_model and not _is_read(name.removeprefix(f"{architecture}."), value, known):
            raise _left_out(path, f"{name} = {value}")


def _left_out(path: Path, what: str) -> ConfigError:
    return ConfigError(
        f"SRC must say nothing that transformers leaves out when it reads GGUF, but {path} has {what}; give its "
        "safetensors"
    )


def _is_read(name: str, value: object, known: Mapping[str, object]) -> bool:
    """Return whether transformers reads a value, or it is checked here, or it is as if it were not there."""
    is_none = name == "rope.scaling.type" and value == "none"
    return name in known or name in _HEAD_SIZES or is_none


def _write(alone: Path, path: Path, tensors: Sequence[str], folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    with loading(path):
        # Its own bar cannot be switched off.
        with redirect_stderr(io.StringIO()):
            model, told = quiet_library().AutoModelForCausalLM.from_pretrained(
                alone.parent, gguf_file=alone.name, dtype=torch.float32, output_loading_info=True
            )
        check_whole(path, told)
        unread = _unread(model, tensors)
        own = {name: one for name, one in model.state_dict().items() if name not in model.all_tied_weights_keys}
    if unread:
        raise _left_out(path, unread[0])
    folder.mkdir()
    # Not `save_pretrained`, which takes the model for a quantised one still.
    save_file(own, folder / SINGLE, metadata={"format": "pt"})
    _write_config(model, folder)


def _unread(model: Any, tensors: Sequence[str]) -> list[str]:
    """Return the tensors of a file that the library passes over without a word."""
    from transformers import modeling_gguf_pytorch_utils

    # The library has no types for these.
    library: Any = modeling_gguf_pytorch_utils
    kind = model.config.model_type
    processor = library.TENSOR_PROCESSORS.get(kind, library.TensorProcessor)
    read = set(library.get_gguf_hf_weights_map(model, processor(config={})))
    # It takes this one by hand.
    read |= {"output.weight"} if kind == "gpt2" else set()
    return [name for name in tensors if name not in read]


def _write_tokenizer(alone: Path, path: Path, folder: Path, fields: Mapping[str, object]) -> None:
    split = fields.get(_SPLIT)
    if fields.get(_KIND) == "gpt2" and split is not None and split not in _known_splits():
        warn(f"{path} splits text as {split}, which transformers does not know, so the run has no tokenizer")
        return
    try:
        quiet_library().AutoTokenizer.from_pretrained(alone.parent, gguf_file=alone.name).save_pretrained(folder)
    # The library raises whatever its parts raise.
    except Exception as error:
        warn(f"{path} has no tokenizer that transformers reads, so the run has none: {first_line(error)}")


def _known_splits() -> set[str]:
    """Return the ways to split text that the library reads; of others it makes GPT-2's."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:
        return {"gpt-2"}
    return {"gpt-2", *GGUF_PRE_TOKENIZER_SPLITS}


def _write_config(model: Any, folder: Path) -> None:
    said = {key: value for key, value in model.config.to_dict().items() if not key.startswith("_")}
    said.pop("quantization_config", None)
    config = {**said, "architectures": [type(model).__name__]}
    (folder / HF_CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")


def _check_sizes(folder: Path, path: Path, architecture: str, fields: Mapping[str, object]) -> None:
    """Compare sizes that the library takes as given with what the file says of them."""
    values = read_hf_model(folder, "SRC").values
    head_dim = values["head_dim"]
    sizes = {**dict.fromkeys(_HEAD_SIZES, head_dim), "rope.dimension_count": values["rope_dims"] or head_dim}
    for name, size in sizes.items():
        said = fields.get(f"{architecture}.{name}", size)
        if said != size:
            raise _left_out(path, f"{architecture}.{name} = {said}, where it takes {size}")
