"""`trident export`: a checkpoint as a folder that transformers loads, tensor by tensor, compared with transformers.

Problems of the words, the model and the target are reported before a tensor is read, without torch.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.checkpoint.base import check_base
from trainer.checkpoint.kept_tokenizer import same_tokenizer, saved_config, tokenizer_folder
from trainer.checkpoint.manifest import MANIFEST, Manifest, check_content
from trainer.checkpoint.store import find_checkpoint
from trainer.config.hf_export import Expressed, exported_config, express
from trainer.config.hf_folder import HF_CONFIG, is_hub_name
from trainer.config.lora import scale_of, without_lora
from trainer.config.models import make_model
from trainer.config.places import absolute_path
from trainer.config.schema import TridentConfig
from trainer.data.tokenizer import BYTES_MARK, load_tokenizer
from trainer.errors import CheckpointError, ConfigError, DataError
from trainer.files import own_folder, storage_faults, sync_folder, write_atomically
from trainer.log import say, warn
from trainer.model_card import model_card
from trainer.new_run import make_folders
from trainer.progress import LOADING, current
from trainer.run_paths import CONFIG, HUGGING_FACE
from trainer.spec.model import Model

if TYPE_CHECKING:
    from trainer.checkpoint.held_weights import Weights
    from trainer.checkpoint.peft_folder import PeftLayer

_USAGE = "trident export CKPT DST [--dtype fp32|bf16|fp16] [--merged] [--ema] [check=false]"
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Our word -> theirs."""
_LOADER = "transformers.AutoModelForCausalLM.from_pretrained("
_UNCHECKED = "logits were not compared"
_GENERATION = "generation_config.json"


@dataclass(frozen=True)
class _Source:
    """The checkpoint that is exported."""

    path: Path
    manifest: Manifest
    config: TridentConfig
    ema: bool
    """Write the average of the weights instead of the weights."""

    @property
    def kept(self) -> Path | None:
        """Folder of the small files that the weights came with, if they came from Hugging Face."""
        folder = self.path / HUGGING_FACE
        return folder if folder.is_dir() else None

    @property
    def model(self) -> Model:
        """The model, with its adapters."""
        return make_model(self.config.model, self.manifest.vocab_size)

    def weights(self) -> Weights:
        """Return the tensors that are written.

        Raises:
            CheckpointError: some are missing, or there is no average.
        """
        from trainer.checkpoint.held_weights import averaged_weights, open_weights

        return (averaged_weights if self.ema else open_weights)(self.path, self.manifest, self.model)

    def foreign_base(self) -> str | None:
        """Return the base of the adapters, if it is a Hugging Face folder; by its name if it has one."""
        base, named = self.manifest.base, self.config.checkpoint.init_from
        if base is None or MANIFEST in base.files:
            return None
        return named if named is not None and is_hub_name(named) else base.path

    def kept_config(self) -> dict[str, object]:
        """Return the config.json that the weights came with; empty if there is none."""
        if self.kept is None:
            return {}
        try:
            found = json.loads((self.kept / HF_CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.kept / HF_CONFIG} must be readable, but: {error}") from error
        return found if isinstance(found, dict) else {}


def export_verb(arguments: Sequence[str], dtype: str | None, merges: bool = False, ema: bool = False) -> int:
    """Run `trident export <arguments>` and return the exit code.

    Args:
        arguments: the words without options.
        dtype: number format, as our words spell it; None: the one that fits.
        merges: write a LoRA run as a whole model instead of its adapters.
        ema: write the average of the weights instead of the weights.

    Raises:
        ConfigError: the usage is wrong, no family can say the model, or DST is not free.
        CheckpointError: CKPT is no whole checkpoint, or transformers' logits differ.
        StorageError: DST cannot be written; nothing is left there.
    """
    checkpoint, target, checks = parse(arguments)
    path, manifest = find_checkpoint(checkpoint)
    source = _Source(path, manifest, saved_config(path / CONFIG), ema)
    _check_target(target)
    is_lora = source.config.model.lora.rank is not None
    if merges and not is_lora:
        raise ConfigError(f"--merged needs a checkpoint of a LoRA run, but {path} has no adapters; leave it out")
    kept = source.kept_config()
    said = express(without_lora(source.config.model), manifest.vocab_size, kept)
    check_content(path, manifest)
    check_base(path, manifest, None)
    writes_adapters = is_lora and not merges
    written = _DTYPES[dtype or "fp32"] if writes_adapters else _dtype(dtype, kept)
    write = _write_adapters if writes_adapters else _write
    partial = target.parent / f".{target.name}.partial"
    current().enter(LOADING)
    with ExitStack() as made, storage_faults(target, "DST"):
        make_folders(target.parent, made)
        with own_folder(partial, "DST"), ExitStack() as undo:
            undo.callback(shutil.rmtree, partial, ignore_errors=True)
            # Another process may have written it since it was checked.
            _check_target(target)
            told = write(source, said, written, partial, checks)
            sync_folder(partial)
            with suppress(FileNotFoundError):
                target.rmdir()
            partial.rename(target)
            undo.pop_all()
        made.pop_all()
        sync_folder(target.parent)
    what = f"adapters of {said.family.architecture}" if writes_adapters else said.family.architecture
    say(f"wrote {target}: {what} in {written}, of {path} (step {manifest.step}); {told}")
    loader = "peft.PeftModel.from_pretrained(base, " if writes_adapters else _LOADER
    say(f'load it with: {loader}"{target}")')
    return 0


def parse(arguments: Sequence[str]) -> tuple[Path, Path, bool]:
    """Return CKPT, DST, and whether the logits are compared.

    Raises:
        ConfigError: a word is missing or cannot be used.
    """
    words = [word for word in arguments if not word.startswith("check=")]
    checks = [word.partition("=")[2] for word in arguments if word.startswith("check=")]
    if len(words) != 2 or any(word.startswith("-") for word in words):
        raise ConfigError(f"usage must be `{_USAGE}`, but is `{' '.join(['trident', 'export', *arguments])}`")
    if any(check not in ("true", "false") for check in checks):
        raise ConfigError(f"check must be true or false, but is {checks[-1]!r}")
    return absolute_path(words[0], "CKPT"), absolute_path(words[1], "DST"), checks[-1:] != ["false"]


def _check_target(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        what = "holds something" if target.is_dir() else "is a file"
        raise ConfigError(f"DST must be a folder that does not exist yet or is empty, but {target} {what}; change DST")


def _dtype(asked: str | None, kept: dict[str, object]) -> str:
    if asked is not None:
        return _DTYPES[asked]
    found = kept.get("dtype") or kept.get("torch_dtype")
    return str(found) if found in _DTYPES.values() else _DTYPES["bf16"]


def _write(source: _Source, said: Expressed, dtype: str, folder: Path, checks: bool) -> str:
    """Write everything into a folder, and return the result of the comparison in words."""
    from trainer.checkpoint.copied_out import write_weights
    from trainer.checkpoint.held_weights import MergedWeights

    end = _copy_small_files(source, folder)
    config = exported_config(said, dtype, source.kept_config(), end)
    write_atomically(folder / HF_CONFIG, json.dumps(config, indent=2) + "\n", "DST")
    tensors = source.weights()
    ours = source.config.model
    if ours.lora.rank is not None:
        merged = MergedWeights(tensors, source.model)
        # Rounded, a sum differs from its rounded parts.
        ours, tensors = (ours, tensors) if dtype == _DTYPES["fp32"] else (without_lora(ours), merged)
        write_weights(merged, said, dtype, folder)
    else:
        write_weights(tensors, said, dtype, folder)
    told = _UNCHECKED
    if checks:
        from trainer.logits_check import WrittenModel, compare

        told = str(compare(WrittenModel(ours, source.manifest.vocab_size, tensors, dtype), folder, folder))
    write_atomically(folder / "README.md", model_card(source.config, source.manifest, said, dtype, told), "DST")
    return told


def _write_adapters(source: _Source, said: Expressed, dtype: str, folder: Path, checks: bool) -> str:
    """Write the adapters into a folder, and return the result of the comparison in words."""
    from trainer.checkpoint.peft_folder import peft_layers, write_adapters

    tensors, lora = source.weights(), source.config.model.lora
    layers = list(peft_layers(tensors, said, source.model))
    write_adapters(layers, lora, source.foreign_base(), dtype, folder)
    told = _compared(source, said, tensors, layers, folder) if checks and dtype == _DTYPES["fp32"] else _UNCHECKED
    base = source.foreign_base() or "the exported base"
    card = model_card(source.config, source.manifest, said, dtype, told, base)
    write_atomically(folder / "README.md", card, "DST")
    return told


def _compared(source: _Source, said: Expressed, tensors: Weights, layers: Sequence[PeftLayer], place: Path) -> str:
    """Compare the adapted model with transformers' reading of the base and the adapters, and tell the result.

    The base is written into a folder of its own in `place` for the time of the comparison.
    """
    from trainer.checkpoint.copied_out import write_weights
    from trainer.checkpoint.held_weights import MergedWeights
    from trainer.logits_check import WrittenModel, compare

    written = WrittenModel(source.config.model, source.manifest.vocab_size, tensors)
    # The whole base is written once more, so on the disk that has room for models.
    with tempfile.TemporaryDirectory(dir=place, prefix=".base_") as temporary:
        folder = Path(temporary)
        config = exported_config(said, _DTYPES["fp32"], source.kept_config(), None)
        (folder / HF_CONFIG).write_text(json.dumps(config), encoding="utf-8")
        write_weights(MergedWeights(tensors, source.model, adds=False), said, _DTYPES["fp32"], folder)
        return str(compare(written, folder, folder, layers, scale_of(source.config.model.lora)))


def _copy_small_files(source: _Source, folder: Path) -> int | None:
    """Copy what the weights came with as it is, and the run's own tokenizer; return the id that ends a text."""
    kept = sorted(source.kept.iterdir()) if source.kept is not None else []
    for path in kept:
        if path.name not in (HF_CONFIG, "README.md"):
            write_atomically(folder / path.name, path.read_bytes(), "DST")
    own = tokenizer_folder(source.path, source.manifest)
    if own is None:
        return None
    if (own / BYTES_MARK).is_file():
        warn("transformers has no tokenizer of plain bytes: none is written")
        return None
    try:
        end = load_tokenizer(own).eos_id
        is_same = (folder / "tokenizer.json").is_file() and same_tokenizer(own, folder)
    except DataError as error:
        warn(f"the tokenizer cannot be read, and is copied as it is: {error}")
        return None
    if not is_same:
        for path in sorted(own.iterdir()):
            write_atomically(folder / path.name, path.read_bytes(), "DST")
    if not kept:
        write_atomically(folder / _GENERATION, json.dumps({"eos_token_id": end}, indent=2) + "\n", "DST")
    return end
