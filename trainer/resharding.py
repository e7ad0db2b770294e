"""`trident reshard`: a checkpoint as the ranks of another layout would have written it, in a run folder of its own.

A run reads any layout, so nothing has to be resharded; but ranks that find the shards they need read only those.
Problems of the words, the layout or the target are reported before the first tensor is read, without torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from pathlib import Path

from trainer.checkpoint.kept_tokenizer import saved_config, tokenizer_folder
from trainer.checkpoint.manifest import (
    IMPORTED_FROM,
    MANIFEST,
    Manifest,
    check_content,
    check_file,
    describe_layout,
    read_manifest,
)
from trainer.checkpoint.store import CheckpointStore, find_checkpoint
from trainer.config.compose import compose, differences, recompose
from trainer.config.keys import GROUPS, KEYS, flatten
from trainer.config.places import absolute_path
from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import TridentConfig
from trainer.config.validate import validate
from trainer.config.wandb_variables import MODE_KEY
from trainer.config.words import for_a_shell, quoted
from trainer.errors import CheckpointError, ConfigError
from trainer.log import say, warn
from trainer.new_run import check_target, making_run, publish
from trainer.run_folder import RunFolder
from trainer.run_paths import CONFIG, HUGGING_FACE

MAY_CHANGE = ("layout", "zero", "batch.micro_batch_size")
RESHARDED_FROM = "resharded_from"
"""Key of the manifest's layout."""
_PLAIN = re.compile(r"[A-Za-z_/.][\w/.-]*")


def reshard_verb(arguments: Sequence[str]) -> int:
    """Run `trident reshard <arguments>` and return the exit code.

    Raises:
        ConfigError: the usage, an override or the new layout is wrong, or DST holds a run.
        CheckpointError: SRC holds no whole checkpoint.
        StorageError: DST cannot be written; nothing is left there.
    """
    source, target, overrides = parse(arguments)
    folder = RunFolder(target)
    for found in _newest_first(source):
        try:
            manifest = read_manifest(found)
            plan = _new_plan(found, manifest, folder, overrides)
            check_content(found, manifest)
        except CheckpointError as error:
            if found == source:
                raise
            warn(f"skipping a damaged checkpoint: {error}")
            continue
        say(f"read {found}: every byte is as it was saved")
        _reshard(found, manifest, plan, folder)
        _report(manifest.step, plan, folder)
        return 0
    raise CheckpointError(f"{source} must hold a whole checkpoint, but all that it holds are damaged")


def parse(arguments: Sequence[str]) -> tuple[Path, Path, list[str]]:
    """Return SRC, DST and the overrides.

    Raises:
        ConfigError: one of them is missing.
    """
    paths, overrides = arguments[:2], list(arguments[2:])
    names = {word.partition("=")[0] for word in paths if "=" in word}
    if len(paths) < 2 or not overrides or names & {*GROUPS, *KEYS}:
        raise ConfigError(
            f"usage must be `trident reshard SRC DST key=value ...`, but is `{' '.join(['reshard', *arguments])}`",
            hints=["see `trident reshard --help`; for example `trident reshard runs/mine runs/mine_tp2 layout=tp2`"],
        )
    source, target = (absolute_path(path, name) for path, name in zip(paths, ("SRC", "DST"), strict=True))
    return source, target, overrides


def _newest_first(source: Path) -> Iterator[Path]:
    """Yield the checkpoint at `source`, or, newest first, those of a run folder that look whole."""
    newest, manifest = find_checkpoint(source)
    yield newest
    if newest != source:
        store = CheckpointStore(newest.parent.parent)
        yield from (store.path(step) for step in reversed(store.steps()) if step < manifest.step)


def _new_plan(found: Path, manifest: Manifest, folder: RunFolder, overrides: Sequence[str]) -> RunPlan:
    saved = _saved_config(found, manifest)
    ranks = manifest.layout.get("data_parallel_size")
    if saved.layout.data_parallel_size is None and isinstance(ranks, int):
        saved = replace(saved, layout=replace(saved.layout, data_parallel_size=ranks))
    config = recompose(saved, overrides, MAY_CHANGE)
    config = replace(config, run_dir=str(folder.path))
    if config.model.lora.rank is None:
        # A run that began from another one's checkpoint goes on from its own; adapters still need what it began from.
        config = replace(config, checkpoint=replace(config.checkpoint, resume="auto", init_from=None))
    validate(config)
    check_target(folder, config)
    return make_plan(config, manifest.vocab_size)


def _saved_config(found: Path, manifest: Manifest) -> TridentConfig:
    if CONFIG not in manifest.files:
        raise CheckpointError(f"{found / MANIFEST} must list {CONFIG}, but does not")
    # Checked before it is used: damage must not be taken for a config that cannot run.
    check_file(found / CONFIG, manifest.files[CONFIG])
    return saved_config(found / CONFIG)


def _reshard(found: Path, manifest: Manifest, plan: RunPlan, folder: RunFolder) -> None:
    """Make the new run folder. The last step makes the checkpoint appear; if one before it fails, all is undone."""
    from trainer.checkpoint.rewrite import rewrite_tensors

    tokenizer, kept = tokenizer_folder(found, manifest), found / HUGGING_FACE
    with making_run(folder, manifest.step) as temporary:
        files = rewrite_tensors(found, manifest, plan, temporary)
        publish(folder, _new_manifest(manifest, plan), plan, files, tokenizer, kept if kept.is_dir() else None)


def _new_manifest(manifest: Manifest, plan: RunPlan) -> Manifest:
    before = manifest.layout
    axes = (before.get(f"{axis}_parallel_size", "?") for axis in ("pipeline", "tensor", "data"))
    origin = f"{' x '.join(map(str, axes))}, ZeRO-{before.get('zero_stage', '?')}"
    kept = {key: before[key] for key in (IMPORTED_FROM,) if key in before}
    return replace(manifest, layout={**describe_layout(plan), **kept, RESHARDED_FROM: origin}, files={})


def _report(step: int, plan: RunPlan, folder: RunFolder) -> None:
    ranks = f"{plan.world_size} rank{'s' * (plan.world_size > 1)}"
    say(
        f"wrote {folder.checkpoints.path(step)} as of {ranks} = pipeline {plan.pipeline_parallel_size} x tensor "
        f"{plan.tensor_parallel_size} x data {plan.data_parallel_size}, every byte read back"
    )
    say(f"go on with: {train_command(plan.config)}")


def train_command(config: TridentConfig) -> str:
    """Return a `trident train` command that composes to this config."""
    values = flatten(config)
    words = [f"{key}={_word(values[key])}" for key in differences(compose([]), config)]
    with suppress(ConfigError):
        # `auto` depends on the machine, and the command may be for another one.
        if set(differences(compose(words), config)) <= {MODE_KEY}:
            return " ".join(map(for_a_shell, ["trident", "train", *words]))
    return f"trident train with the keys of {config.run_dir}/config.yaml"


def _word(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return f"[{','.join(map(_word, value))}]"
    if isinstance(value, Enum):
        return str(value.value)
    text = str(value)
    if (isinstance(value, str) and not _PLAIN.fullmatch(text)) or text in ("null", "true", "false"):
        return quoted(text)
    return text
