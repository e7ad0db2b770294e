"""Paths as people write them, and which keys take one."""

from __future__ import annotations

import pwd
import typing
from pathlib import Path

import pytest

from trainer.config.compose import compose
from trainer.config.keys import KEYS
from trainer.config.places import BY_CONTENT, PATHS, PER_NODE, absolute_path, local_path, source_key
from trainer.errors import ConfigError

ROOT = pwd.getpwuid(0)


def refusal(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        local_path(text, "data.files")
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)
    return caught.value


def test_home_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path("~", "k") == "/home/me"
    assert local_path("~/a/*.txt", "k") == "/home/me/a/*.txt"
    assert local_path(f"~{ROOT.pw_name}/a", "k") == f"{ROOT.pw_dir}/a"
    assert absolute_path("~/a", "k") == Path("/home/me/a")


@pytest.mark.parametrize("text", ["a~", "a/~/b", "./~/b", "/~root", "", "é~", "a b", "x\udcff", "a\nb"])
def test_all_else_stays_as_it_is(text: str) -> None:
    assert local_path(text, "k") == text


def test_a_name_that_begins_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("~nobody-of-this-name").touch()
    assert local_path("~nobody-of-this-name", "k") == "~nobody-of-this-name"
    monkeypatch.setenv("HOME", "/home/me")
    Path("~").mkdir()
    assert local_path("~", "k") == "/home/me", "as every shell reads it"


def test_a_user_that_there_is_not() -> None:
    error = refusal("~no-such-user/x.txt")
    assert str(error) == (
        "data.files must be a path that can be found, but is '~no-such-user/x.txt' and there is no home folder of a "
        "user 'no-such-user'; write the path in full"
    )
    assert error.hints == ("a name that begins with ~ is written ./~no-such-user/x.txt",)


def test_nobody_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "")
    assert "is '~/x' and this user has no home folder" in str(refusal("~/x"))

    def unknown(uid: int) -> typing.NoReturn:
        raise KeyError(uid)

    # So it is in many containers.
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert "this user has no home folder" in str(refusal("~"))


def test_what_is_no_path() -> None:
    assert str(refusal("a\0b")) == "data.files must be a path, but 'a\\x00b' holds a NUL character"


def test_every_key_that_takes_a_path_is_known() -> None:
    named_so = {key for key in KEYS if key.rpartition(".")[2].endswith(("path", "dir", "files", "resume", "init_from"))}
    assert named_so <= {*PATHS, "checkpoint.init_from", "logging.wandb_resume"}
    assert {*PATHS, *BY_CONTENT, *PER_NODE} <= {*KEYS, "tokenizer.eos_token"}


def test_which_key_names_the_data() -> None:
    assert source_key(compose(["data=files", "data.files=[a]"])) == "data.files"
    assert source_key(compose(["data=hub", "data.hub_path=a"])) == "data.hub_path"
    assert source_key(compose(["data=synthetic"])) == "data.source"


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "数" * 85, "two\nlines", 'it\'s "so"', "🙂", "x\udcff"])
def test_long_and_strange_names(name: str) -> None:
    assert absolute_path(f"/a/{name}/b", "run_dir") == Path(f"/a/{name}/b")


@pytest.mark.parametrize(("name", "size"), [("n" * 256, 256), ("é" * 128, 256), ("a/" + "数" * 86 + "/b", 258)])
def test_a_name_that_no_file_system_takes(name: str, size: int) -> None:
    with pytest.raises(ConfigError) as caught:
        absolute_path(name, "run_dir")
    assert str(caught.value) == f"run_dir must be a path of names of at most 255 bytes, but one has {size}; shorten it"


def test_a_path_that_leaves_no_room() -> None:
    assert absolute_path("/" + "/".join(["d" * 250] * 14), "run_dir")
    with pytest.raises(ConfigError) as caught:
        absolute_path("/" + "/".join(["d" * 250] * 15), "run_dir")
    assert str(caught.value) == "run_dir must be a path of at most 3584 bytes, but has 3765; shorten it"
