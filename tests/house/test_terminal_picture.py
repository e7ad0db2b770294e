from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from tests.house.checks import ROOT

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    pytest.importorskip("pyte", reason="pyte understands what is written to a terminal")
    spec = importlib.util.spec_from_file_location("record_terminal", ROOT / "docs" / "record_terminal.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_what_a_command_shows_becomes_frames(script: ModuleType, tmp_path: Path) -> None:
    recording = script.record(["printf 'one <&>\\nabc\\rx\\n'; sleep 2; tput setaf 1; printf red"], tmp_path)
    last = [[text for _, text, _ in line] for line in recording.frames[-1].lines if line]
    assert last[-3:] == [["one <&>"], ["xbc"], ["red", "$"]]
    (red, prompt) = [look for _, _, look in next(line for line in reversed(recording.frames[-1].lines) if line)]
    assert (red, prompt) == (("#ff7b72", False), ("#3fb950", False))
    assert recording.length_s < 15, "a pause is shortened, and a command is typed in a moment"
    times = [frame.at for frame in recording.frames]
    assert times == sorted(set(times))


def test_the_picture_is_a_film_with_words_for_who_does_not_see_it(script: ModuleType, tmp_path: Path) -> None:
    recording = script.record(["printf 'one <&>'"], tmp_path)
    root = ElementTree.fromstring(script.picture(recording, "A & B", "says <one>"))
    assert (root.findtext(f"{SVG}title"), root.findtext(f"{SVG}desc")) == ("A & B", "says <one>")
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert "one <&>" in texts
    style = root.findtext(f"{SVG}style") or ""
    assert "prefers-reduced-motion" in style
    assert style.count("%{") == len(recording.frames)


def test_the_committed_picture_is_whole_and_small() -> None:
    path = ROOT / "docs" / "terminal.svg"
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    names = {element.get("id") for element in root.iter()}
    used = {element.get("href", "")[1:] for element in root.iter(f"{SVG}use")}
    assert used <= names
    assert "trident compare" in (root.findtext(f"{SVG}desc") or "")
    assert path.stat().st_size < 400_000
    assert not list(root.iter(f"{SVG}script"))
