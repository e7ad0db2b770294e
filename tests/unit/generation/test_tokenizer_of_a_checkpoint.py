"""A checkpoint that was copied alone writes texts, and never with somebody else's tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.generation import texts, write_run
from tests.unit.generation.test_generate import seal
from trainer.checkpoint.inspect import checkpoint_verb
from trainer.checkpoint.kept_tokenizer import has_tokenizer, tokenizer_folder, write_tokenizer
from trainer.checkpoint.manifest import MANIFEST, read_manifest
from trainer.config.compose import compose, from_yaml, to_yaml
from trainer.config.schema import TridentConfig
from trainer.data.tokenizer import ByteTokenizer, train_bpe
from trainer.errors import CheckpointError, ConfigError, DataError
from trainer.run_folder import RunFolder
from trainer.run_paths import CONFIG

TEXT = ["the cat sat on the mat"] * 5


def with_tokenizer(run: Path) -> Path:
    """Return a checkpoint as this version saves it."""
    checkpoint = write_run(run)
    for name in write_tokenizer(run / "tokenizer", checkpoint):
        seal(checkpoint, name)
    return checkpoint


def test_a_copied_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = with_tokenizer(tmp_path / "run")
    before = texts(checkpoint)
    alone = tmp_path / "pick" / "models" / "step_5"
    shutil.copytree(checkpoint, alone)
    (tmp_path / "pick" / "tokenizer").mkdir()
    train_bpe(TEXT, 270).save(tmp_path / "pick" / "tokenizer")
    assert texts(alone) == before
    assert checkpoint_verb(["verify", str(alone)]) == 0
    (alone / "tokenizer" / "kind.json").write_text('{"kind": "bytez"}')
    assert checkpoint_verb(["verify", str(alone)]) == 1
    assert "tokenizer/kind.json must be as it was saved" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="must be as it was saved"):
        texts(alone)
    (alone / "tokenizer" / "kind.json").unlink()
    with pytest.raises(CheckpointError, match="must exist, but is missing"):
        texts(alone)


def of_another_name(run: Path) -> Path:
    (run / "checkpoints").rename(run / "models")
    return run / "models" / "step_5"


def without_a_config(run: Path) -> Path:
    (run / CONFIG).unlink()
    return run


def of_another_run(run: Path, *changed: str) -> Path:
    own = from_yaml((run / CONFIG).read_text())
    other: TridentConfig = compose(list(changed))
    (run / CONFIG).write_text(to_yaml(replace(own, data=other.data, tokenizer=other.tokenizer)))
    return run


def with_larger(run: Path) -> Path:
    manifest = read_manifest(run / "checkpoints" / "step_5")
    (run / "checkpoints" / "step_5" / MANIFEST).write_text(replace(manifest, vocab_size=200).to_json())
    return run


def of_another_kind(run: Path) -> Path:
    (run / "tokenizer" / "kind.json").unlink()
    train_bpe(TEXT, 257).save(run / "tokenizer")
    return run


@pytest.mark.parametrize(
    "change",
    [
        of_another_name,
        without_a_config,
        lambda run: of_another_run(run, "tokenizer=bpe"),
        lambda run: of_another_run(run, "tokenizer=bytes", "data.max_documents=5"),
        with_larger,
        of_another_kind,
    ],
    ids=["name", "no config", "kind of tokenizer", "data", "ids", "kind of file"],
)
def test_a_checkpoint_of_an_earlier_version_takes_only_that_of_its_run(
    tmp_path: Path, change: Callable[[Path], Path]
) -> None:
    write_run(tmp_path)
    assert texts(tmp_path)
    with pytest.raises(ConfigError) as caught:
        texts(change(tmp_path))
    assert str(caught.value).startswith("checkpoint must hold its tokenizer, but ")
    assert "tokenizer=PATH" in caught.value.hints[0]


def test_moved_data_do_not_make_it_another_run(tmp_path: Path) -> None:
    write_run(tmp_path)
    words = ("data.cache_dir=elsewhere", "tokenizer=bytes")
    assert texts(of_another_run(tmp_path, *words))


def test_a_tokenizer_can_be_named(tmp_path: Path) -> None:
    checkpoint = write_run(tmp_path / "run")
    before = texts(checkpoint)
    shutil.copytree(checkpoint, tmp_path / "alone" / "step_5")
    assert texts(tmp_path / "alone" / "step_5", tokenizer=str(tmp_path / "run" / "tokenizer")) == before
    (tmp_path / "small").mkdir()
    train_bpe(["x"], 257).save(tmp_path / "small")
    assert texts(tmp_path / "alone" / "step_5", tokenizer=str(tmp_path / "small" / "tokenizer.json"))
    (tmp_path / "large").mkdir()
    train_bpe(TEXT, 270).save(tmp_path / "large")
    with pytest.raises(ConfigError, match=r"tokenizer must have at most as many ids .* \(257\), but .* has 269"):
        texts(checkpoint, tokenizer=str(tmp_path / "large"))


def test_which_data_have_one() -> None:
    ids = ("data=megatron", "data.files=[x]", "model.vocab_size=9")
    assert has_tokenizer(compose(["data=stdlib"]))
    assert not has_tokenizer(compose(["data=synthetic"]))
    assert not has_tokenizer(compose([*ids]))
    assert has_tokenizer(compose([*ids, "tokenizer=pretrained", "tokenizer.path=x"]))


def test_synthetic_data_have_none_whatever_lies_there(tmp_path: Path) -> None:
    checkpoint = write_run(tmp_path)
    for folder in (checkpoint, tmp_path):
        config = replace(from_yaml((checkpoint / CONFIG).read_text()), data=compose(["data=synthetic"]).data)
        (folder / CONFIG).write_text(to_yaml(config))
    seal(checkpoint, CONFIG)
    assert tokenizer_folder(checkpoint, read_manifest(checkpoint)) is None


def test_a_run_folder_keeps_the_tokenizer_of_its_data_alone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    for name, made in (("bytes", ByteTokenizer()), ("bpe", train_bpe(TEXT, 270))):
        (tmp_path / name).mkdir()
        made.save(tmp_path / name)
        folder.keep_tokenizer(tmp_path / name)
        assert {path.name for path in folder.tokenizer.iterdir()} == {path.name for path in (tmp_path / name).iterdir()}


def test_a_named_tokenizer_that_does_not_exist(tmp_path: Path) -> None:
    checkpoint = write_run(tmp_path / "run")
    with pytest.raises(DataError, match=r"^tokenizer must be .* but '/nosuch/x' does not exist$"):
        texts(checkpoint, tokenizer="/nosuch/x")
