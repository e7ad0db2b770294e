"""`trident export`: a checkpoint as a folder that transformers loads, tensor by tensor, compared with transformers.

Problems of the words, the model and the target are reported before a tensor is read, without torch.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint.kept_tokenizer import saved_config, tokenizer_folder
from trainer.checkpoint.manifest import Manifest, check_content
from trainer.checkpoint.store import find_checkpoint
from trainer.config.hf_export import Expressed, exported_config, express
from trainer.config.hf_folder import HF_CONFIG
from trainer.config.places import absolute_path
from trainer.config.schema import TridentConfig
from trainer.data.tokenizer import BYTES_MARK, load_tokenizer
from trainer.errors import CheckpointError, ConfigError, DataError
from trainer.files import storage_faults, sync_folder, write_atomically
from trainer.log import say, warn
from trainer.model_card import model_card
from trainer.new_run import make_folders
from trainer.run_paths import CONFIG, HUGGING_FACE

_USAGE = "trident export CKPT DST [--dtype fp32|bf16|fp16] [check=false]"
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Our word -> theirs."""
_GENERATION = "generation_config.json"


@dataclass(frozen=True)
class _Source:
    """The checkpoint that is exported."""

    path: Path
    manifest: Manifest
    config: TridentConfig

    @property
    def kept(self) -> Path | None:
        """Folder of the small files that the weights came with, if they came from Hugging Face."""
        folder = self.path / HUGGING_FACE
        return folder if folder.is_dir() else None

    def kept_config(self) -> dict[str, object]:
        """Return the config.json that the weights came with; empty if there is none."""
        if self.kept is None:
            return {}
        try:
            found = json.loads((self.kept / HF_CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.kept / HF_CONFIG} must be readable, but: {error}") from error
        return found if isinstance(found, dict) else {}


def export_verb(arguments: Sequence[str], dtype: str | None) -> int:
    """Run `trident export <arguments>` and return the exit code.

    Raises:
        ConfigError: the usage is wrong, no family can say the model, or DST is not free.
        CheckpointError: CKPT is no whole checkpoint, or transformers' logits differ.
        StorageError: DST cannot be written; nothing is left there.
    """
    checkpoint, target, checks = parse(arguments)
    path, manifest = find_checkpoint(checkpoint)
    source = _Source(path, manifest, saved_config(path / CONFIG))
    _check_target(target)
    kept = source.kept_config()
    said = express(source.config.model, manifest.vocab_size, kept)
    check_content(path, manifest)
    written = _dtype(dtype, kept)
    partial = target.parent / f".{target.name}.partial"
    with ExitStack() as undo, storage_faults(target, "DST"):
        make_folders(target.parent, undo)
        shutil.rmtree(partial, ignore_errors=True)
        undo.callback(shutil.rmtree, partial, ignore_errors=True)
        partial.mkdir()
        told = _write(source, said, written, partial, checks)
        sync_folder(partial)
        with suppress(FileNotFoundError):
            target.rmdir()
        partial.rename(target)
        undo.pop_all()
        sync_folder(target.parent)
    say(f"wrote {target}: {said.family.architecture} in {written}, of {path} (step {manifest.step}); {told}")
    say(f'load it with: transformers.AutoModelForCausalLM.from_pretrained("{target}")')
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

    end = _copy_small_files(source, folder)
    config = exported_config(said, dtype, source.kept_config(), end)
    write_atomically(folder / HF_CONFIG, json.dumps(config, indent=2) + "\n", "DST")
    write_weights(source.path, source.manifest, said, dtype, folder)
    told = "logits were not compared"
    if checks:
        from trainer.checkpoint.fragments import TensorFolder
        from trainer.logits_check import compare, written_model

        tensors = TensorFolder(source.path, source.manifest.files)
        model = written_model(source.config.model, source.manifest.vocab_size, tensors, dtype)
        told = str(compare(model, folder))
    write_atomically(folder / "README.md", model_card(source.config, source.manifest, said, dtype, told), "DST")
    return told


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
        is_same = (folder / "tokenizer.json").is_file() and _same_tokenizer(own, folder)
    except DataError as error:
        warn(f"the tokenizer cannot be read, and is copied as it is: {error}")
        return None
    if not is_same:
        for path in sorted(own.iterdir()):
            write_atomically(folder / path.name, path.read_bytes(), "DST")
    if not kept:
        write_atomically(folder / _GENERATION, json.dumps({"eos_token_id": end}, indent=2) + "\n", "DST")
    return end


def _same_tokenizer(own: Path, theirs: Path) -> bool:
    """Return whether two files are one tokenizer, however they are written."""
    import tokenizers

    first, second = (tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (own, theirs))
    for one in (first, second):
        one.no_truncation()
        one.no_padding()
    return bool(first.to_str() == second.to_str())
