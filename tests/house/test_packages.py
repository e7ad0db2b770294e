from __future__ import annotations

import configparser
from fnmatch import fnmatch
from pathlib import Path

from tests.house.checks import PACKAGE, ROOT

CONF = f"{PACKAGE}.conf"


def packages_of(root: Path) -> set[str]:
    """Packages in the tree, and the folder of YAML files that is installed as one."""
    inits = (root / PACKAGE).rglob("__init__.py")
    return {".".join(path.parent.relative_to(root).parts) for path in inits} | {CONF}


def folders_without_init(root: Path) -> set[str]:
    return {
        str(path.parent.relative_to(root))
        for path in (root / PACKAGE).rglob("*.py")
        if not (path.parent / "__init__.py").is_file()
    }


def listed(setup: str) -> list[str]:
    parser = configparser.ConfigParser()
    parser.read_string(setup)
    return parser["options"]["packages"].split()


def left_out(root: Path, setup: str) -> list[str]:
    """YAML files that no pattern of package_data matches."""
    parser = configparser.ConfigParser()
    parser.read_string(setup)
    patterns = [pattern.strip() for pattern in parser["options.package_data"][CONF].split(",")]
    files = [path.relative_to(root / "conf").as_posix() for path in (root / "conf").rglob("*.yaml")]
    # fnmatch's star crosses folders, setuptools' does not.
    same_depth = [[p for p in patterns if p.count("/") == file.count("/")] for file in files]
    return [f for f, fits in zip(files, same_depth, strict=True) if not any(fnmatch(f, p) for p in fits)]


SETUP = (ROOT / "setup.cfg").read_text()


def test_setup_lists_every_package() -> None:
    names = listed(SETUP)
    assert len(names) == len(set(names))
    assert set(names) == packages_of(ROOT)


def test_every_folder_is_a_package() -> None:
    assert folders_without_init(ROOT) == set()


def test_every_yaml_file_is_package_data() -> None:
    assert [file for file in left_out(ROOT, SETUP) if not file.startswith("local/")] == []


def test_what_is_missing_is_found(tmp_path: Path) -> None:
    for name in (
        "trainer/__init__.py",
        "trainer/a/__init__.py",
        "trainer/b/x.py",
        "conf/one.yaml",
        "conf/g/sub/two.yaml",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    setup = (
        "[options]\npackages =\n  trainer\n  trainer.conf\n[options.package_data]\ntrainer.conf = *.yaml, */*.yaml\n"
    )
    assert packages_of(tmp_path) - set(listed(setup)) == {"trainer.a"}
    assert folders_without_init(tmp_path) == {"trainer/b"}
    assert left_out(tmp_path, setup) == ["g/sub/two.yaml"]
