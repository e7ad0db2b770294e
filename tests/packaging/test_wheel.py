from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from trainer.config.compose import options

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.e2e


def check(command: Sequence[str], cwd: Path, timeout_s: float, **extra: str) -> str:
    environment = {**os.environ, **extra}
    # Neither may lead back into the source tree.
    environment.pop("PYTHONPATH", None)
    result = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    # A copy, so that no build folder stays in the source tree and no earlier one is packed.
    source = place / "source"
    files = subprocess.run(
        [
            "git",
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "trainer",
            "conf",
            "*.cfg",
            "*.toml",
            "*.md",
            "LICENSE",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout.splitlines()
    for file in files:
        if (ROOT / file).is_file():
            (source / file).parent.mkdir(parents=True, exist_ok=True)
            (source / file).write_bytes((ROOT / file).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    check([*pip, "-w", str(place)], source, 240)
    [built] = place.glob("*.whl")
    return built


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def missing(names: set[str], root: Path) -> list[str]:
    """Files of the source tree that an installation needs and the wheel lacks."""
    code = [path.relative_to(root).as_posix() for path in (root / "trainer").rglob("*.py")]
    yaml = [f"trainer/{path.relative_to(root).as_posix()}" for path in (root / "conf").rglob("*.yaml")]
    wanted = [*code, *(name for name in yaml if not name.startswith("trainer/conf/local/")), "trainer/py.typed"]
    return sorted(set(wanted) - names)


def test_the_wheel_is_complete(wheel: Path) -> None:
    names = names_in(wheel)
    assert missing(names, ROOT) == []
    assert {name.split("/")[0].split("-")[0] for name in names} == {"trainer", "trident_trainer"}


def test_what_a_wheel_lacks_is_found(wheel: Path) -> None:
    names = names_in(wheel) - {"trainer/conf/train.yaml", "trainer/py.typed", "trainer/launcher/start.py"}
    assert missing(names, ROOT) == ["trainer/conf/train.yaml", "trainer/launcher/start.py", "trainer/py.typed"]


def test_the_wheel_names_the_command_and_what_it_needs(wheel: Path) -> None:
    names = names_in(wheel)
    [points] = [name for name in names if name.endswith("entry_points.txt")]
    [metadata] = [name for name in names if name.endswith("METADATA")]
    with zipfile.ZipFile(wheel) as archive:
        parser = configparser.ConfigParser()
        parser.read_string(archive.read(points).decode())
        text = archive.read(metadata).decode()
    assert dict(parser["console_scripts"]) == {"trident": "trainer.__main__:main"}
    for package in ("torch", "deepspeed", "transformers", "datasets", "wandb", "hydra-core"):
        assert f"\nRequires-Dist: {package}" in text


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel; its dependencies are those of the environment that runs the tests."""
    place = tmp_path_factory.mktemp("installed")
    venv.create(place, with_pip=False, symlinks=True)
    paths = {"base": str(place), "platbase": str(place)}
    packages = Path(sysconfig.get_path("purelib", vars=paths))
    python = place / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "-q"]
    check([*install, str(wheel)], place, 120)
    # After the wheel's own folder, and without the .pth files there, which would lead to the source tree.
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return place / "bin"


def test_the_installed_package_is_the_wheels(installed: Path, tmp_path: Path) -> None:
    place = check([str(installed / "python"), "-c", "import trainer; print(trainer.__file__)"], tmp_path, 60)
    assert Path(place.strip()).is_relative_to(installed.parent)


def test_help_from_an_unrelated_folder(installed: Path, tmp_path: Path) -> None:
    trident = str(installed / "trident")
    assert check([trident, "--help"], tmp_path, 60).startswith("usage: trident VERB")
    text = check([trident, "train", "--help"], tmp_path, 60)
    for group, names in options().items():
        files = r"\s+".join(names)
        assert re.search(rf"^  {group} +{files}$", text, re.MULTILINE), group
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(300)
def test_training_from_an_unrelated_folder_through_the_launch_script(installed: Path, tmp_path: Path) -> None:
    # By the name of a recipe of the user's own, which builds on one that ships.
    mine = tmp_path / "conf" / "experiment" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text(
        "defaults:\n  - debug\n  - override /data: synthetic\n  - override /runtime: cpu\n  - _self_\n"
        "model: {vocab_size: 512}\ntrain: {steps: '${oc.env:STEPS}'}\n"
    )
    words = ["experiment=mine"]
    run = tmp_path / "run"
    # The scripts are not in the wheel; a copy of them finds the environment that is named, and no source tree.
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for name in ("local.sh", "common.sh"):
        shutil.copy(ROOT / "launch" / name, scripts)
    command = ["bash", str(scripts / "local.sh"), *words, "layout=dp2", f"run_dir={run}"]
    check(command, tmp_path, 280, TRIDENT_CACHE=str(tmp_path / "cache"), TRIDENT_VENV=str(installed.parent), STEPS="2")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    assert json.loads((run / "plan.json").read_text())["layout"]["world_size"] == 2
    assert "steps: 2" in (run / "config.yaml").read_text()
    assert not (run / "checkpoints").exists(), "experiment=debug saves nothing"
