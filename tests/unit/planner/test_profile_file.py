from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainer.config.schema import Dtype
from trainer.errors import ConfigError, StorageError
from trainer.planner.constants import Constant
from trainer.planner.profile import Link, Profile
from trainer.planner.profile_file import (
    CPU,
    Calibration,
    circumstances,
    find_calibration,
    profile_path,
    read_calibration,
    write_calibration,
)

FROM = "measured on 2026-11-29 with torch 2.9"


def number(value: float) -> Constant:
    return Constant(value, FROM)


LINK = Link(number(1e-5), number(0.9), number(4096.0))
PROFILE = Profile(
    name="CPU, calibrated 2026-11-29",
    gemm_efficiency=number(0.8),
    gemm_bandwidth_efficiency=number(0.7),
    gemm_latency_s=number(1e-6),
    attention_efficiency=number(0.3),
    bandwidth_efficiency=number(0.5),
    launch_s=number(1e-4),
    intra_node=LINK,
    inter_node=LINK,
    host=LINK,
    gradient_traffic=number(1.0),
    overlap=number(0.0),
    optimizer_efficiency=number(0.6),
    step_s=number(1e-3),
    error=number(0.15),
    memory_error=number(0.1),
    measured_on="2026-11-29",
    peak_flops={Dtype.fp32: number(1e11), Dtype.bf16: number(3e11)},
    memory_bandwidth=number(2e10),
)


def calibration() -> Calibration:
    versions, machine = circumstances(CPU)
    return Calibration(CPU, "2026-11-29", versions, machine, PROFILE)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"TRIDENT_CACHE": str(tmp_path)}


def written(environ: dict[str, str], change: Callable[[dict[str, Any]], object] = lambda body: None) -> Path:
    path = profile_path(CPU, environ)
    write_calibration(path, calibration())
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))
    return path


def test_what_is_written_is_read(environ: dict[str, str]) -> None:
    assert read_calibration(written(environ)) == calibration()


def test_it_is_found_on_this_machine(environ: dict[str, str]) -> None:
    written(environ)
    found = find_calibration(CPU, environ)
    assert found.calibration == calibration()
    assert found.note is None


def test_without_a_file_there_is_nothing_to_say(environ: dict[str, str]) -> None:
    found = find_calibration(CPU, environ)
    assert found.calibration is None
    assert found.note is None


def test_names_of_devices_are_names_of_files(environ: dict[str, str], tmp_path: Path) -> None:
    assert profile_path("A100-80GB", environ) == tmp_path / "profiles" / "A100-80GB.json"
    assert profile_path("../a b", environ).parent == tmp_path / "profiles"
    assert profile_path(CPU, {}) == Path("~/.cache/trident/profiles/CPU.json").expanduser()


def _nested(body: dict[str, Any], *keys: str, value: object) -> None:
    for key in keys[:-1]:
        body = body[key]
    body[keys[-1]] = value


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda body: body.pop("profile"), "profile is missing"),
        (lambda body: body["profile"].pop("launch_s"), "profile.launch_s is missing"),
        (lambda body: body["profile"]["intra_node"].pop("latency_s"), "profile.intra_node.latency_s is missing"),
        (lambda body: _nested(body, "profile", "step_s", "value", value="soon"), "step_s.value is no finite number"),
        (lambda body: _nested(body, "profile", "step_s", "value", value=True), "step_s.value is no finite number"),
        (lambda body: _nested(body, "profile", "step_s", "value", value=float("nan")), "step_s.value is no finite"),
        (lambda body: _nested(body, "profile", "step_s", value=3), "profile.step_s is no object"),
        (lambda body: _nested(body, "profile", "warp_s", value=3), "profile.warp_s is unknown"),
        (lambda body: _nested(body, "profile", "peak_flops", "fp5", value={}), "profile.peak_flops has an unknown fp5"),
        (lambda body: _nested(body, "date", value="yesterday"), "Invalid isoformat string"),
        (lambda body: _nested(body, "device", value=None), "device is no text"),
        (lambda body: _nested(body, "machine", value=[]), "machine is no object"),
        (lambda body: _nested(body, "format", value=0), "must be a device profile of format 2, but is of 0"),
        (lambda body: body.pop("kind"), "but is something else"),
        (
            lambda body: _nested(body, "profile", "peak_flops", "fp32", "value", value=-1.0),
            "must have a peak_flops.fp32 from 1e+06 to 1e+17, but it is -1",
        ),
        (
            lambda body: _nested(body, "profile", "host", "latency_s", "value", value=1e6),
            "must have a host.latency_s from 0 to 10, but it is 1e+06",
        ),
        (
            lambda body: _nested(body, "profile", "overlap", "value", value=2.0),
            "must have a overlap from 0 to 1, but it is 2",
        ),
    ],
)
def test_a_damaged_file_is_refused_in_one_line_and_planned_without(
    environ: dict[str, str], change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    path = written(environ, change)
    with pytest.raises(ConfigError) as refusal:
        read_calibration(path)
    assert reason in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    found = find_calibration(CPU, environ)
    assert found.calibration is None
    assert found.note == f"{refusal.value}; planned without it"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"7"])
def test_what_is_no_profile_is_refused(environ: dict[str, str], content: bytes) -> None:
    path = written(environ)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="must be a device profile"):
        read_calibration(path)


def test_a_folder_in_its_place_is_told(environ: dict[str, str]) -> None:
    profile_path(CPU, environ).mkdir(parents=True)
    assert "must be a readable device profile, but: Is a directory" in str(find_calibration(CPU, environ).note)


def test_another_machine_is_not_this_one(environ: dict[str, str]) -> None:
    written(environ, lambda body: _nested(body, "machine", "cores", value="512"))
    found = find_calibration(CPU, environ)
    assert found.calibration is None
    assert "was measured on another machine (cores: 512, here " in str(found.note)


def test_the_file_of_another_device_is_not_this_ones(environ: dict[str, str]) -> None:
    written(environ, lambda body: _nested(body, "device", value="H100"))
    assert "was measured on H100, not on CPU" in str(find_calibration(CPU, environ).note)


def test_other_software_is_told_and_the_profile_used(environ: dict[str, str]) -> None:
    written(environ, lambda body: _nested(body, "versions", "torch", value="1.0"))
    found = find_calibration(CPU, environ)
    assert found.calibration is not None
    assert "was measured with torch 1.0, now " in str(found.note)


def test_an_absurd_number_is_not_written(environ: dict[str, str]) -> None:
    path = profile_path(CPU, environ)
    absurd = replace(calibration(), profile=replace(PROFILE, launch_s=number(1e9)))
    with pytest.raises(ConfigError, match="must have a launch_s from 0 to 10"):
        write_calibration(path, absurd)
    assert not path.exists()


def test_a_disk_that_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "profiles").write_text("")
    with pytest.raises((StorageError, OSError)):
        write_calibration(tmp_path / "profiles" / "CPU.json", calibration())


def test_circumstances_name_the_processor(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Fast One\n\nprocessor\t: 1\nmodel name\t: Fast One\n")
    versions, machine = circumstances(CPU, info)
    assert "torch" in versions
    assert machine["processor"] == "Fast One"
    assert int(machine["cores"]) >= 1
    assert circumstances(CPU, tmp_path / "none")[1]["processor"]
    assert circumstances("H100", info)[1] == {}
