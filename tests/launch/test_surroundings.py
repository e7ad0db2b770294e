"""launch/local.sh where a machine is not as one would like it: a home that cannot be written, LANG=C, a full disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command import Ended, rows, run
from tests.launch.launch_fixtures import LAUNCH

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

LOCAL = LAUNCH / "local.sh"
SETTINGS = (
    *("data=synthetic", "model.vocab_size=256", "model.hidden_size=32", "model.seq_length=32", "runtime.device=cpu"),
    "train.steps=2",
)


def can_mount() -> bool:
    trial = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /mnt"]
    return subprocess.run(trial, capture_output=True, check=False).returncode == 0


needs_mounts = pytest.mark.skipif(not can_mount(), reason="mounts are needed, which this user may not make")


def train(folder: Path, mounts: str, *words: str, **environment: str) -> Ended:
    """Run launch/local.sh in a mount namespace of its own, after `mounts`."""
    script = f'set -e; {mounts}; exec bash "$@"'
    kept = {"TRIDENT_VENV": sys.prefix, "TRIDENT_CACHE": str(folder / "cache"), **environment}
    return run(["unshare", "--mount", "bash", "-c", script, "-", str(LOCAL), *SETTINGS, *words], folder, 300, kept)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


READ_ONLY = 'mount --bind "$HOME" "$HOME"; mount -o remount,ro,bind "$HOME"; ! touch "$HOME/x" 2>/dev/null'


@needs_mounts
def test_a_read_only_home_and_a_plain_locale(tmp_path: Path, home: Path) -> None:
    text = tmp_path / "Größe.txt"
    text.write_text("größer als nötig\n" * 2000, encoding="utf-8")
    words = ("data=files", f"data.files=['{text}']", "tokenizer=bytes", "model.vocab_size=null", "run_dir='Läufe'")
    ended = train(tmp_path, READ_ONLY, *words, "layout=dp2", HOME=str(home), LANG="C", LC_ALL="C")
    assert ended.code == 0, ended.out + ended.err
    assert ended.errors == []
    assert "Traceback" not in ended.out + ended.err
    assert [row["step"] for row in rows(tmp_path / "Läufe")] == [1, 2]
    assert (tmp_path / "Läufe" / "checkpoints" / "step_2" / "manifest.json").is_file()
    assert list(home.iterdir()) == []


@needs_mounts
def test_a_cache_in_a_read_only_home_is_refused(tmp_path: Path, home: Path) -> None:
    ended = train(tmp_path, READ_ONLY, "layout=dp2", HOME=str(home), TRIDENT_CACHE="")
    assert ended.code == 8
    assert len(ended.errors) == 1
    assert ended.errors[0].startswith("error: data.cache_dir must be on a disk that takes the tokens, but ")
    assert "Read-only file system" in ended.errors[0]
    assert "set data.cache_dir or TRIDENT_CACHE" in ended.err
    assert not (tmp_path / "runs").exists()


@needs_mounts
@pytest.mark.parametrize("layout", ["single", "dp2"])
def test_a_full_disk_is_told_before_a_rank_starts(layout: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    fill = f"mount -t tmpfs -o size=64k none '{disk}'; ! cat /dev/zero >'{disk}/filler' 2>/dev/null"
    ended = train(tmp_path, fill, f"layout={layout}", f"run_dir={disk}/R")
    assert ended.code == 8, ended.out + ended.err
    assert len(ended.errors) == 1
    assert "must be writable, but the disk is full" in ended.errors[0]
    assert "hint: free some space, or set run_dir to a folder on a larger disk" in ended.err
    assert "Traceback" not in ended.out + ended.err
