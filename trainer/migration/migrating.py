"""`trident migrate`: from files of another trainer to an experiment file, a report and a comparison."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.config.compose import compose
from trainer.config.keys import joined
from trainer.config.places import absolute_path
from trainer.config.request import read_request
from trainer.config.schema import TridentConfig
from trainer.config.searched import shown
from trainer.config.validate import problems
from trainer.errors import ConfigError
from trainer.files import write_atomically
from trainer.log import say, warn
from trainer.migration.draft import Draft, Entry, Why
from trainer.migration.experiment_file import as_text
from trainer.migration.foreign import Foreign, Trainer
from trainer.migration.from_deepspeed import put_deepspeed
from trainer.migration.from_gpt_neox import put_gpt_neox
from trainer.migration.from_megatron import put_megatron
from trainer.migration.from_nanotron import put_nanotron
from trainer.migration.leftovers import settle_leftovers
from trainer.migration.migration_report import Migration, report
from trainer.migration.reading import read_foreign
from trainer.migration.shape import There
from trainer.migration.side_by_side import compare

FOLDER = Path("conf/experiment")
"""Folder of a user's own experiments, which is searched from the working directory."""
_NAME = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Asked:
    """Words of a person who migrates files."""

    files: Sequence[str]
    settings: Sequence[str] = ()
    """Words for keys that win over the files."""
    output: str | None = None
    trainer: Trainer | None = None
    overwrites: bool = False


def migrate_verb(asked: Asked) -> int:
    """Run `trident migrate` and return the exit code: 1 if a number that must be the same differs.

    Raises:
        ConfigError: the files cannot be used, or what they make cannot run; nothing is written.
        StorageError: the experiment cannot be written.
    """
    done = migrate(asked)
    if done.path.exists() and not asked.overwrites:
        raise ConfigError(
            f"{shown(done.path)} must not be there yet, but is; use --force to replace it, or -o FILE for another one"
        )
    try:
        write_atomically(done.path, done.text, "-o")
    except OSError as error:
        raise ConfigError(
            f"-o must name a file that can be written, but {shown(done.path)}: {error.strerror}"
        ) from error
    for line in report(done):
        say(line)
    wrong = [one for one in done.compared if not one.agrees]
    for one in wrong:
        warn(f"{one.name} differ: {one.there:,} there, {one.here:,} here; please report this with the file")
    return 1 if wrong else 0


def migrate(asked: Asked) -> Migration:
    """Return the experiment that foreign files describe; nothing is written.

    Raises:
        ConfigError: the files cannot be used, or the experiment breaks a rule.
    """
    if not asked.files:
        raise ConfigError("trident migrate needs a FILE of another trainer, but none is given")
    foreign = read_foreign(asked.files, asked.trainer)
    wanted = _wanted(asked.settings)
    draft, there = draft_of(foreign, wanted)
    path = _target(asked, foreign, wanted)
    if "model.hidden_size" in draft.entries:
        draft.entries.setdefault("model.name", Entry(path.stem, "the name of this file"))
    source = joined((shown(Path(file)) if file != "-" else "the standard input" for file in asked.files), "and")
    title = f"Made of {source} ({foreign.trainer.value}) by `trident migrate`."
    text = as_text(path.stem, title, draft, foreign.notes)
    config = _composed(text, path)
    return Migration(foreign, draft, text, config, tuple(compare(there, config, wanted)), path)


def draft_of(foreign: Foreign, wanted: Mapping[str, object]) -> tuple[Draft, There]:
    """Return the keys that foreign settings and a person's own words set, and the numbers there.

    Raises:
        ConfigError: a setting is missing, or is none.
    """
    draft = Draft(foreign.settings, wanted)
    there = _put(draft, foreign)
    settle_leftovers(draft)
    draft.settle_read()
    launcher = Draft({name: one for name, one in foreign.surroundings.items() if len(name) > 1})
    launcher.drop_all(launcher.settings, Why.environment, "the launcher's own")
    draft.dropped += launcher.dropped
    for key, value in wanted.items():
        draft.entries[key] = Entry(value, "given beside the files")
    return draft, there


def _put(draft: Draft, foreign: Foreign) -> There:
    if foreign.trainer is Trainer.gpt_neox:
        return put_gpt_neox(draft)
    if foreign.trainer is Trainer.megatron:
        return put_megatron(draft, foreign.surroundings)
    if foreign.trainer is Trainer.nanotron:
        return put_nanotron(draft)
    return put_deepspeed(draft)


def _wanted(words: Sequence[str]) -> Mapping[str, object]:
    """Return the keys that words set.

    Raises:
        ConfigError: a word sets no key.
    """
    request = read_request(words)
    found = list(request.problems)
    found += [
        f"'{group}' is a group; behind FILE only keys can be set, such as model.vocab_size=50257"
        for group in (*request.choices, *(["config"] if request.file else []))
    ]
    if found:
        raise ConfigError(found)
    return request.values


def _target(asked: Asked, foreign: Foreign, wanted: Mapping[str, object]) -> Path:
    if asked.output is not None:
        path = absolute_path(asked.output, "-o")
        if path.is_dir() or asked.output.endswith("/"):
            raise ConfigError(f"-o must name a file, such as mine.yaml, but {asked.output} is a folder")
        if path.suffix not in (".yaml", ".yml"):
            raise ConfigError(f"-o must name a file that ends in .yaml, but is {asked.output}")
        return path
    name = str(wanted.get("name") or foreign.name)
    return Path.cwd() / FOLDER / f"{_NAME.sub('_', name).strip('_') or 'migrated'}.yaml"


def _composed(text: str, path: Path) -> TridentConfig:
    """Return the config that an experiment's text composes to, at the place where it will stand.

    Raises:
        ConfigError: it does not compose, or breaks a rule.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / path.name
        file.write_text(text, encoding="utf-8")
        try:
            config = compose([f"experiment={file}"])
            found = problems(config)
        except ConfigError as error:
            found = [line.replace(str(file), shown(path)) for line in error.problems]
    if found:
        raise ConfigError(found, hints=["a KEY=VALUE behind FILE settles it; nothing was written"])
    return config
