"""`trident import`: a Hugging Face model as a run folder, tensor by tensor, compared with transformers.

Problems of the words, the source and the target are reported before a tensor is read, without torch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.checkpoint.manifest import IMPORTED_FROM, FileFacts, Manifest, describe_layout
from trainer.config.hf_folder import (
    TOKENIZER_FILE,
    HFModel,
    find_gguf,
    find_source,
    is_hf_folder,
    kept_files,
    read_hf_model,
    source_name,
)
from trainer.config.places import absolute_path
from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import DataConfig, DataSource, TokenizerConfig, TokenizerKind, TridentConfig
from trainer.config.validate import problems
from trainer.data.pretrained_tokenizer import load_pretrained
from trainer.errors import ConfigError, DataError
from trainer.files import storage_faults
from trainer.interchange.weight_index import weight_files
from trainer.log import say, warn
from trainer.loop.state import TrainState
from trainer.new_run import check_target, making_run, publish
from trainer.progress import LOADING, current
from trainer.run_folder import RunFolder
from trainer.versions import versions

_USAGE = "trident import SRC DST [check=false] [seq_length=N]"
_STEP = 0
"""Steps that the run has trained."""
_TOKENIZER_FILES = ("tokenizer", "special_tokens_map", "vocab", "merges", "added_tokens", "chat_template", "generation")


@dataclass(frozen=True)
class _Request:
    source: str
    target: Path
    checks: bool
    seq_length: int | None


def import_verb(arguments: Sequence[str]) -> int:
    """Run `trident import <arguments>` and return the exit code.

    Raises:
        ConfigError: the usage is wrong, the source is not a model that can be computed, or DST holds a run.
        CheckpointError: the weights are damaged or do not fit the config, or the logits differ from transformers'.
        StorageError: DST cannot be written; nothing is left there.
    """
    request = parse(arguments)
    packed = find_gguf(request.source, "SRC")
    if packed is None:
        return _import(request, find_source(request.source, "SRC"))
    from trainer.gguf_file import unpacked

    # A full DST is found before the file is read.
    check_target(RunFolder(request.target), TridentConfig())
    beside = next(path for path in request.target.parents if path.is_dir())
    scratch = beside / f".{request.target.name}.gguf"
    with storage_faults(beside, "DST"), unpacked(packed, scratch) as unpacked_folder:
        return _import(request, unpacked_folder, is_temporary=True)


def _import(request: _Request, source_folder: Path, is_temporary: bool = False) -> int:
    """Import a folder; one that is temporary is named nowhere in the run."""
    source = read_hf_model(source_folder, "SRC")
    weight_files(source.folder)
    folder = RunFolder(request.target)
    plan = _plan(source, request, folder.tokenizer if is_temporary else source.folder)
    if is_hf_folder(request.target):
        raise ConfigError(
            f"DST must be the folder of a run, but {request.target} holds a Hugging Face model; change DST"
        )
    check_target(folder, plan.config)
    current().enter(LOADING)
    from trainer.checkpoint.copied_in import copy_weights

    with making_run(folder, _STEP) as temporary, tempfile.TemporaryDirectory() as kept_in:
        files = copy_weights(source, plan, temporary)
        told = _compared(temporary, files, source, plan) if request.checks else "logits were not compared"
        kept, tokenizer = _kept(source, Path(kept_in))
        publish(folder, _manifest(plan, request.source), plan, files, tokenizer, kept)
    say(
        f"wrote {folder.path}: {source.family.architecture} with {plan.model.parameter_count:,} parameters of "
        f"{request.source}; {told}"
    )
    if not source.has_tokenizer and not is_temporary:
        warn(
            f"{source.folder} has no {TOKENIZER_FILE}, so the run has no tokenizer; transformers makes the file: "
            "AutoTokenizer.from_pretrained(SRC).save_pretrained(SRC)"
        )
    described = folder.hugging_face if is_temporary else request.source
    say(f"train on with: trident train model=hf model.path={described} checkpoint.init_from={folder.path} ...")
    return 0


def parse(arguments: Sequence[str]) -> _Request:
    """Return what is asked for.

    Raises:
        ConfigError: a word is missing or cannot be used.
    """
    words = [word for word in arguments if not word.startswith(("check=", "seq_length="))]
    told = dict(word.split("=", 1) for word in arguments if word not in words)
    if len(words) != 2 or any(word.startswith("-") for word in words):
        raise ConfigError(f"usage must be `{_USAGE}`, but is `{' '.join(['trident', 'import', *arguments])}`")
    if told.get("check", "true") not in ("true", "false"):
        raise ConfigError(f"check must be true or false, but is {told['check']!r}")
    length = told.get("seq_length")
    if length is not None and not (length.isdecimal() and int(length) > 0):
        raise ConfigError(f"seq_length must be an integer of at least 1, but is {length!r}")
    target = absolute_path(words[1], "DST")
    return _Request(words[0], target, told.get("check") != "false", int(length) if length else None)


def _plan(source: HFModel, request: _Request, tokenizer_folder: Path) -> RunPlan:
    model = replace(source.model, name=source_name(request.source, source.folder))
    if request.seq_length is not None:
        model = replace(model, seq_length=request.seq_length)
    config = TridentConfig(model=model, run_dir=str(request.target), name=request.target.name)
    if source.has_tokenizer:
        tokenizer = TokenizerConfig(TokenizerKind.pretrained, path=str(source.folder), allow_unused_ids=True)
        _check_tokenizer(replace(config, tokenizer=tokenizer))
        config = replace(config, tokenizer=replace(tokenizer, path=str(tokenizer_folder)))
    else:
        config = replace(config, data=DataConfig(source=DataSource.synthetic))
    # The layout, the batch and the rest are chosen by whoever trains.
    found = [line for line in problems(config) if line.startswith("model.")]
    if found:
        raise ConfigError([f"{source.folder}: {line}" for line in found])
    assert model.vocab_size is not None, "every family has a vocabulary"
    return make_plan(config, model.vocab_size)


def _check_tokenizer(config: TridentConfig) -> None:
    try:
        size = load_pretrained(config.tokenizer, "SRC").vocab_size
    except DataError as error:
        warn(f"the tokenizer cannot be used to train or to sample: {error}")
        return
    wanted = config.model.vocab_size or 0
    if size > wanted:
        raise ConfigError(
            f"the tokenizer must have at most vocab_size ({wanted}) ids, but that of {config.tokenizer.path} has {size}"
        )


def _compared(temporary: Path, files: Mapping[str, FileFacts], source: HFModel, plan: RunPlan) -> str:
    """Compare what was written with transformers, and return the result in words."""
    from trainer.checkpoint.fragments import TensorFolder
    from trainer.logits_check import WrittenModel, compare

    written = WrittenModel(plan.config.model, plan.model.vocab_size, TensorFolder(temporary, files))
    return str(compare(written, source.folder, temporary))


def _kept(source: HFModel, folder: Path) -> tuple[Path, Path | None]:
    """Return a folder of all small files, and one of those that belong to the tokenizer, as they are."""
    kept, tokenizer = folder / "kept", folder / "tokenizer"
    kept.mkdir()
    tokenizer.mkdir()
    for path in kept_files(source.folder):
        (kept / path.name).write_bytes(path.read_bytes())
        if path.name.startswith(_TOKENIZER_FILES):
            (tokenizer / path.name).write_bytes(path.read_bytes())
    return kept, tokenizer if source.has_tokenizer else None


def _manifest(plan: RunPlan, source: str) -> Manifest:
    return Manifest(
        step=_STEP,
        vocab_size=plan.model.vocab_size,
        train_state=TrainState(sample_length=plan.execution.seq_length).to_dict(),
        scalars={},
        probe_loss=None,
        layout={**describe_layout(plan), IMPORTED_FROM: source},
        versions=versions(),
        files={},
    )
