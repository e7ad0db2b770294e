"""GPUs as their driver tells of them: answers of nvidia-smi that are written here, since there is no GPU to break."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.doctor import commands, look
from trainer.config.schema import DeviceKind, RuntimeConfig, TridentConfig
from trainer.doctor.finding import Finding, Status
from trainer.doctor.surroundings import Surroundings

GPU = """
<gpu id="00000000:{bus}:00.0">
  <product_name>NVIDIA H100 80GB HBM3</product_name>
  <compute_mode>Default</compute_mode>
  <pci><pci_gpu_link_info><link_widths>
    <max_link_width>16x</max_link_width><current_link_width>16x</current_link_width>
  </link_widths></pci_gpu_link_info></pci>
  <fb_memory_usage><total>81559 MiB</total><used>4 MiB</used></fb_memory_usage>
  <ecc_errors><volatile>
    <sram_correctable>0</sram_correctable><sram_uncorrectable_parity>0</sram_uncorrectable_parity>
    <dram_correctable>7</dram_correctable><dram_uncorrectable>0</dram_uncorrectable>
  </volatile></ecc_errors>
  <remapped_rows>
    <remapped_row_pending>No</remapped_row_pending><remapped_row_failure>No</remapped_row_failure>
  </remapped_rows>
  <clocks_event_reasons>
    <clocks_event_reason_gpu_idle>Active</clocks_event_reason_gpu_idle>
    <clocks_event_reason_hw_slowdown>Not Active</clocks_event_reason_hw_slowdown>
  </clocks_event_reasons>
  <gpu_power_readings>
    <default_power_limit>700.00 W</default_power_limit><current_power_limit>700.00 W</current_power_limit>
  </gpu_power_readings>
  <fabric><state>Completed</state></fabric>
</gpu>"""
HEAD = '<?xml version="1.0" ?>\n<nvidia_smi_log><driver_version>580.65.06</driver_version>'


def answered(tmp_path: Path, script: str, count: int = 2, device: DeviceKind = DeviceKind.auto) -> list[Finding]:
    """Return what is found of some GPUs when nvidia-smi is a script."""
    tools, dev = tmp_path / "bin", tmp_path / "dev"
    for folder in (tools, dev):
        folder.mkdir()
    for index in range(count):
        (dev / f"nvidia{index}").touch()
    (tools / "nvidia-smi").write_text(f"#!/bin/bash\n{script}\n")
    (tools / "nvidia-smi").chmod(0o755)
    config = TridentConfig(runtime=RuntimeConfig(device=device))
    return look("GPUs", Surroundings(config, {"PATH": f"{tools}:/usr/bin:/bin"}, tmp_path))


def log(*changes: tuple[str, str], count: int = 2) -> str:
    """Return an answer of nvidia-smi whose last GPU differs from healthy ones."""
    last = GPU.format(bus="FF")
    for old, new in changes:
        assert old in last
        last = last.replace(old, new)
    gpus = [GPU.format(bus=f"{index:02X}") for index in range(count - 1)]
    return f"cat <<'X'\n{HEAD}{''.join([*gpus, last])}</nvidia_smi_log>\nX"


def test_healthy_gpus(tmp_path: Path) -> None:
    [found] = answered(tmp_path, log())
    assert found.status is Status.ok
    assert found.found.startswith("2 x NVIDIA H100 80GB HBM3, driver 580.65.06: no error on record")


@pytest.mark.parametrize(
    ("old", "new", "status", "found", "command"),
    [
        ("<dram_uncorrectable>0<", "<dram_uncorrectable>2<", Status.fail, "counts 2 memory errors", "--gpu-reset"),
        ("parity>0<", "parity>1<", Status.fail, "counts 1 memory errors", "--gpu-reset"),
        ("failure>No<", "failure>Yes<", Status.fail, "has no spare rows", ""),
        ("pending>No<", "pending>Yes<", Status.warn, "waits to put a damaged part", "--gpu-reset"),
        ("hw_slowdown>Not Active<", "hw_slowdown>Active<", Status.warn, "its hardware slows it down", ""),
        (">Default<", ">Prohibited<", Status.fail, "lets nobody compute", "--compute-mode=0"),
        ("<current_link_width>16x", "<current_link_width>4x", Status.warn, "has 4x of 16x lanes", ""),
        ("<current_power_limit>700", "<current_power_limit>300", Status.warn, "300.00 W of 700.00 W", "-limit=700"),
        (">Completed<", ">In Progress<", Status.fail, "waits for the fabric", "systemctl start nvidia-fabricmanager"),
        ("<used>4 ", "<used>70000 ", Status.warn, "has 70,000 MiB in use", "nvidia-smi"),
    ],
)
def test_gpus_that_are_ill(old: str, new: str, status: Status, found: str, command: str, tmp_path: Path) -> None:
    [one] = answered(tmp_path, log((old, new)))
    assert (one.name, one.status) == ("GPU 1", status)
    assert one.found.startswith("NVIDIA H100 80GB HBM3 (00000000:FF:00.0)")
    assert found in one.found
    assert command in " ".join(commands(one))


@pytest.mark.parametrize("field", ["clocks_event_reason", "clocks_throttle_reason"])
def test_drivers_of_several_years(field: str, tmp_path: Path) -> None:
    answer = log(("hw_slowdown>Not Active<", "hw_slowdown>Active<")).replace("clocks_event_reason", field)
    [one] = answered(tmp_path, answer)
    assert one.status is Status.warn


def test_a_driver_that_knows_little(tmp_path: Path) -> None:
    script = f"echo '{HEAD}<gpu/><gpu><ecc_errors><volatile>N/A</volatile></ecc_errors></gpu></nvidia_smi_log>'"
    assert [one.status for one in answered(tmp_path, script)] == [Status.ok]


def test_a_gpu_that_is_lost(tmp_path: Path) -> None:
    first, *others = answered(tmp_path, log(count=2), count=3)
    assert (first.name, first.status, others) == ("GPUs", Status.fail, [])
    assert first.found == "the kernel shows 3, but the driver answers for 2: one may be lost"


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 'No devices were found'; exit 6", "does not answer: No devices were found"),
        ("exit 9", "does not answer: ended with 9"),
        ("echo 'NVIDIA-SMI has failed' >&2; exit 9", "does not answer: NVIDIA-SMI has failed"),
        ("echo '<nvidia_smi_log><gpu>'", "cannot be read"),
        ("echo", "cannot be read"),
        ("head -c 100 /dev/urandom", "cannot be read"),
        ("kill -SEGV $$", "ended with -11"),
    ],
)
def test_a_driver_that_does_not_answer(script: str, found: str, tmp_path: Path) -> None:
    [one] = answered(tmp_path, script)
    assert one.status is Status.fail
    assert found in one.found


def test_gpus_that_no_rank_would_use(tmp_path: Path) -> None:
    [one] = answered(tmp_path, "exit 9", device=DeviceKind.cpu)
    assert one.status is Status.warn


def test_no_gpu_and_no_nvidia_smi(tmp_path: Path) -> None:
    assert look("GPUs", Surroundings(environ={}, root=tmp_path))[0].status is Status.skip
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    [one] = look("GPUs", Surroundings(environ={"PATH": ""}, root=tmp_path))
    assert (one.status, "nvidia-smi is not on PATH" in one.found) == (Status.fail, True)
