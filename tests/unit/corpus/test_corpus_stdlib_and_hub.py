from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from typing import Any, NoReturn

import datasets
import pytest

from tests.unit.data.data_fixtures import config, told, write_text
from trainer.config.schema import DataConfig
from trainer.corpus.inputs import identity, stdlib_files
from trainer.corpus.read import documents
from trainer.errors import DataError


def hub_config(path: object, **values: object) -> DataConfig:
    return config(data__source="hub", data__hub_path=str(path), **values).data


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> NoReturn:
        raise AssertionError("a test may not use the network")

    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def saved(folder: Path, *texts: object, **splits: list[object]) -> Path:
    if splits:
        datasets.DatasetDict(
            {name: datasets.Dataset.from_dict({"text": column}) for name, column in splits.items()}
        ).save_to_disk(str(folder))
    else:
        datasets.Dataset.from_dict({"id": list(range(len(texts))), "text": list(texts)}).save_to_disk(str(folder))
    return folder


def test_the_library_of_this_python_is_real_text_in_a_fixed_order() -> None:
    files = stdlib_files()
    assert files == sorted(files) == stdlib_files()
    root = Path(sysconfig.get_paths()["stdlib"])
    assert {root / "os.py", root / "json" / "decoder.py"} <= set(files)
    parts = {part for path in files for part in path.relative_to(root).parts}
    assert not parts & {"site-packages", "dist-packages", "test", "tests", "__pycache__"}
    data = config(data__max_documents=40).data
    texts = list(documents(data))
    assert texts == list(documents(data))
    assert len(texts) == 40
    assert texts == [text for path in files if (text := path.read_bytes().decode()).strip()][:40]


def fake_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(folder)})


def test_what_is_no_module_of_the_library_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_library(tmp_path, monkeypatch)
    for name in ("b.py", "a.py", "p/m.py", "site-packages/x.py", "test/t.py", "p/tests/t.py", "a.txt"):
        write_text(tmp_path / name, name)
    (tmp_path / "latin.py").write_bytes(b"# gr\xfcn")
    (tmp_path / "folder.py").mkdir()
    # Debian's sitecustomize.py points at configuration that slim images lack.
    (tmp_path / "sitecustomize.py").symlink_to("/nowhere/sitecustomize.py")
    assert list(documents(config().data)) == ["a.py", "b.py", "p/m.py"]
    assert len(identity(config().data)) == 1 + 4


def test_a_library_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_library(tmp_path, monkeypatch)
    path = write_text(tmp_path / "a.py", "x")

    def refuse(*_args: object, **_options: object) -> NoReturn:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", refuse)
    assert told(lambda: list(documents(config().data))) == (
        f"data.source=stdlib: library modules must be readable, but {path} is not: [Errno 5] Input/output error"
    )


def test_a_saved_data_set_is_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    saved(tmp_path / "set", "a", "", None, "b", "c")
    assert list(documents(hub_config(tmp_path / "set"))) == ["a", "b", "c"]
    assert list(documents(hub_config("~/set", data__max_documents=2))) == ["a", "b"]


def test_a_split_of_saved_ones_is_chosen(tmp_path: Path) -> None:
    saved(tmp_path / "set", train=["a"], test=["b", "c"])
    assert list(documents(hub_config(tmp_path / "set"))) == ["a"]
    assert list(documents(hub_config(tmp_path / "set", data__hub_split="test"))) == ["b", "c"]


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    saved(tmp_path / "set", train=["a"], test=["b"])
    data = hub_config(tmp_path / "set", data__hub_split="dev")
    assert told(lambda: list(documents(data))) == "data.hub_split must be one of train, test, but is dev"


@pytest.mark.parametrize(("key", "have"), [("body", "has id, text"), ("id", "holds int there")])
def test_a_field_that_holds_no_text(tmp_path: Path, key: str, have: str) -> None:
    path = saved(tmp_path / "set", "a")
    data = hub_config(path, data__text_key=key)
    expected = f"data.hub_path={path} must have the text field data.text_key={key}, but {have}"
    assert told(lambda: list(documents(data))) == expected


def test_a_damaged_saved_set(tmp_path: Path) -> None:
    path = saved(tmp_path / "set", "a")
    for file in path.glob("*.arrow"):
        file.write_bytes(b"damaged")
    message = told(lambda: list(documents(hub_config(path))))
    assert message.startswith(f"data.hub_path={path} must be a data set that can be read, but: ")


@pytest.mark.parametrize("downloads", [False, True])
def test_a_name_is_read_with_its_configuration_and_split(downloads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[tuple[object, ...], dict[str, object]]] = []

    def load(*args: object, **options: object) -> list[dict[str, Any]]:
        calls.append((args, options))
        return [{"text": "a"}, {"text": "b"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = hub_config("org/name", data__hub_name="sample", data__hub_split="test", data__hub_download=downloads)
    assert list(documents(data)) == ["a", "b"]
    assert calls == [(("org/name", "sample"), {"split": "test", "streaming": not downloads})]


@pytest.mark.parametrize("is_saved", [False, True])
def test_a_folder_is_not_downloaded(is_saved: bool, tmp_path: Path) -> None:
    if is_saved:
        datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "set")
    else:
        (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match=r"data\.hub_download=true has no effect where data\.hub_path is a folder"):
        list(documents(hub_config(str(tmp_path / "set"), data__hub_download=True)))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("Couldn't reach it\nMax retries exceeded\n"), "ConnectionError: Couldn't reach it"),
        (datasets.exceptions.DatasetNotFoundError("\n  No such set"), "DatasetNotFoundError: No such set"),
        (TimeoutError(), "TimeoutError: TimeoutError"),
    ],
)
def test_a_name_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    def refuse(*_args: object, **_options: object) -> NoReturn:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    message = told(lambda: list(documents(hub_config("org/name"))))
    assert message == f"data.hub_path=org/name must be a data set that can be read, but: {said}"


def test_a_stream_that_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Any:
        yield {"text": "a"}
        raise OSError("connection reset")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_args, **_options: rows())
    source = documents(hub_config("org/name"))
    assert next(source) == "a"
    assert "OSError: connection reset" in told(lambda: next(source))


def test_identity_of_a_name_is_the_name_and_of_a_folder_its_files(tmp_path: Path) -> None:
    base = identity(hub_config("org/name"))
    assert base == identity(hub_config("org/name"))
    others = [
        hub_config("org/other"),
        hub_config("org/name", data__hub_name="sample"),
        hub_config("org/name", data__hub_split="test"),
        hub_config("org/name", data__text_key="body"),
    ]
    assert len({tuple(identity(data)) for data in others} | {tuple(base)}) == 5
    path = saved(tmp_path / "set", "a")
    before = identity(hub_config(path))
    file = next(path.glob("*.arrow"))
    os.utime(file, ns=(1, 1))
    assert identity(hub_config(path)) != before


def test_files_need_no_hugging_face_import(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys; from trainer.corpus.read import documents; from trainer.config.keys import build;"
        f"data = build({{'data.source': 'files', 'data.files': ['{write_text(tmp_path / 'a.txt', 'x')}']}}).data;"
        "assert list(documents(data)) == ['x']; import trainer.data.prepare, trainer.data.capacity;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'datasets', 'pyarrow', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
