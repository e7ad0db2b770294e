"""Where tokens are kept: found again, built once, rebuilt where damaged, and told where they cannot be kept."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import pytest
import tokenizers

import trainer.data.prepare as prepare_module
from tests.unit.data.data_fixtures import config, stream, told, write_text
from trainer.config.schema import TridentConfig
from trainer.data.prepare import cache_folder, prepare
from trainer.errors import ConfigError, StorageError

PATIENCE_S = 100
SPAWN = multiprocessing.get_context("spawn")


def cached(folder: Path, **values: object) -> TridentConfig:
    path = folder / "a.txt"
    if not path.exists():
        write_text(path, "some text to train on\n" * 40)
    keys = {"tokenizer__vocab_size": 270, "data__files": [str(path)], "data__cache_dir": str(folder / "cache")}
    return config(data__source="files", **(keys | values))


def refuse(*_args: object, **_options: object) -> NoReturn:
    raise AssertionError("this must not be called")


def fails(number: int) -> Any:
    def fail(*_args: object, **_options: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fail


def test_what_is_there_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    first = prepare(cached(tmp_path), said.append)
    assert said == ["tokenising data.source=files"]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [
        first.fingerprint,
        f"{first.fingerprint}.lock",
    ]
    # A cache that was filled by somebody else may be read-only.
    monkeypatch.setattr(prepare_module, "turn", refuse)
    monkeypatch.setattr(prepare_module, "_build", refuse)
    assert prepare(cached(tmp_path), refuse) == first
    assert prepare(cached(tmp_path, batch__global_batch_size=3, model__seq_length=7, train__seed=5)) == first


def test_another_process_may_build_while_this_one_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = prepare(cached(tmp_path))
    away = tmp_path / "away"
    built.folder.rename(away)

    def others_were_first(*_args: object) -> None:
        away.rename(built.folder)

    monkeypatch.setattr(fcntl, "flock", others_were_first)
    monkeypatch.setattr(prepare_module, "_build", refuse)
    assert prepare(cached(tmp_path)) == built


def replace_by(folder: Path, kind: str) -> None:
    shutil.rmtree(folder)
    if kind == "folder":
        folder.mkdir()
    elif kind == "file":
        folder.write_text("x")
    else:
        folder.symlink_to("gone")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "tokens cut": lambda folder: os.truncate(folder / "train-00000.bin", 4),
    "tokens longer": lambda folder: os.truncate(folder / "train-00000.bin", 10**5),
    "no validation": lambda folder: os.unlink(folder / "validation-00000.bin"),
    "no tokenizer": lambda folder: shutil.rmtree(folder / "tokenizer"),
    "tokenizer cut": lambda folder: os.truncate(folder / "tokenizer" / "tokenizer.json", 9),
    "no description": lambda folder: os.unlink(folder / "manifest.json"),
    "nothing in it": lambda folder: replace_by(folder, "folder"),
    "a file": lambda folder: replace_by(folder, "file"),
    "a dangling link": lambda folder: replace_by(folder, "link"),
}
DESCRIPTIONS = ("", "null", "[]", "{}", "7", '{"sizes": {}}', '{"sizes": []}', "\x00" * 90)


@pytest.mark.parametrize("damage", [*DAMAGE, *DESCRIPTIONS])
def test_damage_is_built_again(tmp_path: Path, damage: str) -> None:
    first = prepare(cached(tmp_path))
    tokens = stream(first).tolist()
    if damage in DAMAGE:
        DAMAGE[damage](first.folder)
    else:
        (first.folder / "manifest.json").write_text(damage)
    said: list[str] = []
    assert prepare(cached(tmp_path), said.append) == first
    assert said[0] == f"the cached tokens in {first.folder} are damaged: building them again"
    assert stream(first).tolist() == tokens
    assert prepare(cached(tmp_path), refuse) == first


def test_a_description_of_other_numbers_is_damage(tmp_path: Path) -> None:
    first = prepare(cached(tmp_path))
    meta = first.folder / "manifest.json"
    whole = meta.read_text()
    for old, new in (('"dtype": "uint16"', '"dtype": "int32"'), ('"dtype": "uint16"', '"dtype": "u1"')):
        meta.write_text(whole.replace(old, new))
        assert prepare(cached(tmp_path)) == first
        assert meta.read_text() == whole


def fingerprint(wanted: TridentConfig) -> str:
    return prepare_module._fingerprint(wanted)


def test_the_fingerprint_follows_what_decides_the_tokens(tmp_path: Path) -> None:
    base = fingerprint(cached(tmp_path))
    assert base == fingerprint(cached(tmp_path))
    others = [
        cached(tmp_path, data__max_documents=1),
        cached(tmp_path, data__validation_fraction=0.5),
        cached(tmp_path, data__text_key="body"),
        cached(tmp_path, tokenizer__vocab_size=271),
        cached(tmp_path, tokenizer__kind="bytes", tokenizer__vocab_size=None),
    ]
    assert len({fingerprint(other) for other in others} | {base}) == 6
    assert fingerprint(cached(tmp_path, data__cache_dir="elsewhere")) == base
    assert fingerprint(cached(tmp_path, tokenizer__vocab_size=None, model__vocab_size=270)) == base
    write_text(tmp_path / "a.txt", "changed")
    assert fingerprint(cached(tmp_path)) not in {fingerprint(other) for other in others} | {base}


def test_the_fingerprint_of_a_synthetic_stream() -> None:
    def synthetic(**values: object) -> str:
        return fingerprint(config(**({"data__source": "synthetic", "model__vocab_size": 50} | values)))

    others = [synthetic(train__seed=1), synthetic(model__vocab_size=51), synthetic(data__synthetic_tokens=9)]
    assert len({*others, synthetic()}) == 4


@pytest.mark.parametrize("spelling", ["tok", "tok/tokenizer.json", "~/tok"])
def test_the_fingerprint_follows_a_pretrained_tokenizer(
    tmp_path: Path, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tok").mkdir()
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    made.add_special_tokens(["</s>"])
    made.save("tok/tokenizer.json")
    wanted = cached(tmp_path, tokenizer__kind="pretrained", tokenizer__vocab_size=None, tokenizer__path=spelling)
    before = prepare(wanted)
    assert before.vocab_size == 2
    made.add_tokens(["text"])
    made.save("tok/tokenizer.json")
    after = prepare(wanted)
    assert after.vocab_size == 3
    assert after.folder != before.folder


def test_the_cache_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("TRIDENT_CACHE", "/scratch/cache")
    assert cache_folder(config()) == Path("/scratch/cache")
    assert cache_folder(config(data__cache_dir="here")) == tmp_path / "here"
    assert cache_folder(config(data__cache_dir="~/here")) == Path("/home/somebody/here")
    monkeypatch.setenv("TRIDENT_CACHE", "")
    assert cache_folder(config()) == Path("/home/somebody/.cache/trident")
    assert prepare(cached(tmp_path, data__cache_dir="here")).folder.parent == tmp_path / "here"


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIDENT_CACHE")
    monkeypatch.setenv("HOME", "")
    with pytest.raises(ConfigError) as caught:
        cache_folder(config())
    assert str(caught.value) == (
        "data.cache_dir must be a path that can be found, but is '~/.cache/trident' and this user has no home folder; "
        "write the path in full"
    )
    assert caught.value.hints == ("set data.cache_dir or TRIDENT_CACHE to a folder",)


@pytest.mark.parametrize("name", ["a.txt", "a.txt/below"])
def test_a_cache_that_is_no_folder(tmp_path: Path, name: str) -> None:
    wanted = cached(tmp_path, data__cache_dir=str(tmp_path / name))
    message = told(lambda: prepare(wanted))
    assert message.startswith(f"data.cache_dir must be a folder that can be written, but {tmp_path / name}: [Errno ")


@pytest.mark.parametrize("step", ["mkdir", "rename"])
def test_a_cache_without_permission(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = cached(tmp_path)
    monkeypatch.setattr(Path, step, fails(errno.EACCES))
    expected = (
        f"data.cache_dir must be a folder that can be written, but {tmp_path}/cache: [Errno 13] Permission denied"
    )
    assert told(lambda: prepare(wanted)) == expected


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("step", ["os.fsync", "trainer.data.prepare.write_manifest", "pathlib.Path.mkdir"])
def test_a_full_disk_is_a_fault_of_storage(
    tmp_path: Path, number: int, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = cached(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(step, fails(number))
        with pytest.raises(StorageError) as caught:
            prepare(wanted)
    assert caught.value.exit_code == 8
    expected = f"[Errno {number}] {os.strerror(number)}"
    assert (
        str(caught.value) == f"data.cache_dir must be on a disk that takes the tokens, but {tmp_path}/cache: {expected}"
    )
    # What is finished stays for the next try.
    left = {path.suffix for path in (tmp_path / "cache").glob("*")}
    assert left <= ({".lock", ".work"} if step.endswith("write_manifest") else {".lock"})
    assert prepare(wanted).train_tokens > 0


def test_bad_data_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_text(path, '{"text": "good"}\nbroken\n')
    wanted = cached(tmp_path, tokenizer__kind="bytes", tokenizer__vocab_size=None, data__files=[str(path)])
    for _ in range(2):
        assert "line 2" in told(lambda: prepare(wanted))
        assert [entry.suffix for entry in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_fault_of_the_source_is_not_blamed_on_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = cached(tmp_path)
    real = Path.open

    def guarded(path: Path, *args: Any, **options: Any) -> Any:
        return fails(errno.EACCES)() if path.name == "a.txt" else real(path, *args, **options)

    monkeypatch.setattr(Path, "open", guarded)
    assert told(lambda: prepare(wanted)).startswith("data.files must be readable, but ")


def _build_slowly(folder: str, building: Event, other: Event, said: Any) -> None:
    def say(text: str) -> None:
        said.put(("first", text))
        building.set()
        assert other.wait(PATIENCE_S)

    said.put(("first", prepare(cached(Path(folder)), say).fingerprint))


def _ask_meanwhile(folder: str, building: Event, other: Event, said: Any) -> None:
    assert building.wait(PATIENCE_S)
    other.set()
    said.put(("second", prepare(cached(Path(folder)), lambda text: said.put(("second", text))).fingerprint))


def _die(*_args: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_before_the_end(folder: str) -> None:
    with mock.patch.object(prepare_module, "write_manifest", _die):
        prepare(cached(Path(folder)))


def ended(*processes: BaseProcess) -> list[int | None]:
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(PATIENCE_S)
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()


def test_two_processes_build_once(tmp_path: Path) -> None:
    building, other, said = SPAWN.Event(), SPAWN.Event(), SPAWN.Queue()
    cached(tmp_path)
    arguments = (str(tmp_path), building, other, said)
    first = SPAWN.Process(target=_build_slowly, args=arguments)
    second = SPAWN.Process(target=_ask_meanwhile, args=arguments)
    assert ended(first, second) == [0, 0]
    heard = {said.get(timeout=PATIENCE_S) for _ in range(3)}
    found = prepare(cached(tmp_path), refuse).fingerprint
    assert heard == {("first", "tokenising data.source=files"), ("first", found), ("second", found)}
    assert said.empty()


def test_a_killed_builder_leaves_nothing_whole(tmp_path: Path) -> None:
    wanted = cached(tmp_path)
    process = SPAWN.Process(target=_die_before_the_end, args=(str(tmp_path),))
    assert ended(process) == [-signal.SIGKILL]
    left = sorted(path.name for path in (tmp_path / "cache").iterdir())
    name = fingerprint(wanted)
    assert len(left) == 3
    assert left[0].startswith(f".{name}.")
    assert left[0].endswith(".partial")
    assert left[1:] == [f".{name}.work", f"{name}.lock"]
    said: list[str] = []
    prepared = prepare(wanted, said.append)
    assert said == ["tokenising data.source=files", "data    goes on: 1 of 1 units are finished"]
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {f"{name}.lock", name}
    whole = prepare(cached(tmp_path, data__cache_dir=str(tmp_path / "other")))
    assert stream(prepared).tolist() == stream(whole).tolist()
