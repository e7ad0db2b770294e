"""The table of accelerators: every row can be trusted as far as it says, and a name finds the row that is meant."""

from __future__ import annotations

import math
import re
from dataclasses import fields

import pytest

from trainer.devices import (
    CPU,
    NAMES,
    TABLE,
    Device,
    Link,
    find_device,
    is_processor,
    nearest_devices,
    of_driver,
)

WANTED = (
    *("P100", "V100-16GB", "V100-32GB", "V100-PCIe-16GB", "V100-PCIe-32GB", "T4", "RTX-3090", "RTX-4090", "RTX-5090"),
    *("A10", "A30", "A40", "A6000", "L4", "L40", "L40S", "A100-40GB", "A100-80GB", "A100-PCIe-80GB", "H100"),
    *("H100-PCIe", "H100-NVL", "H200", "H20", "GH200", "B200", "GB200", "B300", "MI250X", "MI300X", "MI325X", "CPU"),
)


def test_the_table_has_what_people_train_on() -> None:
    assert set(WANTED) <= set(NAMES)
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("device", TABLE, ids=lambda device: device.name)
def test_figures_are_in_their_range_and_agree(device: Device) -> None:
    peak, memory = device.peak, device.memory
    # The makers' GB of a GPU's memory are GiB, or nearly: never is more usable, and never less than 88 %.
    assert 0.88 * memory.gb < memory.usable_gib < memory.gb
    assert peak.fp32 <= max(filter(None, (peak.fp16, peak.bf16)))
    assert peak.bf16 in (None, peak.fp16)
    assert peak.fp8 is None or 1.99 < peak.fp8 / (peak.fp16 or math.nan) < 2.03
    assert 300 <= memory.gb_s <= 8000
    assert 16 <= device.link.gb_s <= 900
    assert 16 <= device.bus.gb_s <= 450
    assert 70 <= device.watts <= 1400
    assert device.per_node in (4, 8)


@pytest.mark.parametrize("device", TABLE, ids=lambda device: device.name)
def test_every_figure_has_a_source(device: Device) -> None:
    parts = [field.name for field in fields(device)]
    assert all(len(device.source(part)) > 10 for part in parts)
    assert set(device.also) <= set(parts)


@pytest.mark.parametrize("device", TABLE, ids=lambda device: device.name)
def test_a_device_is_found_by_each_of_its_names(device: Device) -> None:
    for name in (
        device.name,
        *device.aliases,
        device.name.lower(),
        device.name.replace("-", "_"),
        f"NVIDIA {device.name}",
    ):
        assert find_device(name) is device


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("A100", "A100-80GB"),
        ("a100-80gb", "A100-80GB"),
        ("A100-80G", "A100-80GB"),
        ("A100-SXM4-80GB", "A100-80GB"),
        ("a100_sxm4_40gb", "A100-40GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100-SXM-64GB", "A100-80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-PCIe-40GB"),
        ("NVIDIA A100 80GB PCIe", "A100-PCIe-80GB"),
        ("H100-SXM", "H100"),
        ("h100 sxm5", "H100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA GH200 144G HBM3e", "GH200-144GB"),
        ("rtx4090", "RTX-4090"),
        ("4090", "RTX-4090"),
        ("NVIDIA GeForce RTX 3090", "RTX-3090"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX-6000-Ada"),
        ("NVIDIA RTX A6000", "A6000"),
        ("V100", "V100-32GB"),
        ("Tesla V100-SXM2-16GB", "V100-16GB"),
        ("Tesla V100-PCIE-16GB", "V100-PCIe-16GB"),
        ("Tesla V100S-PCIE-32GB", "V100-PCIe-32GB"),
        ("Tesla P100-SXM2-16GB", "P100"),
        ("Tesla P100-PCIE-16GB", "P100-PCIe"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_a_name_is_understood_as_people_and_drivers_write_it(typed: str, found: str) -> None:
    device = find_device(typed)
    assert device is not None
    assert device.name == found


@pytest.mark.parametrize(
    "typed", ["", "A100-70GB", "H100-40GB", "A10G", "RTX 4090 Laptop", "RTX 4090 D", "B100", "TPU v4"]
)
def test_what_is_not_in_the_table_is_not_found(typed: str) -> None:
    assert find_device(typed) is None


@pytest.mark.parametrize(
    "name",
    ["NVIDIA A100 MIG 1g.5gb", "NVIDIA A10G", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "CPU"],
)
def test_a_driver_s_name_may_mean_nothing_here(name: str) -> None:
    assert of_driver(name) is None


def test_a_variant_goes_before_its_family() -> None:
    # Every pattern finds its own row in a name that the driver would make of it.
    made = {row.name: re.sub(r"\(\?!.*?\)|\\b", "", row.pattern).replace(".*", "-") for row in TABLE if row.pattern}
    assert {name: found.name for name, text in made.items() if (found := of_driver(text))} == {
        name: name for name in made
    }


@pytest.mark.parametrize(
    ("typed", "near"), [("H10", "H100"), ("A1000", "A100"), ("MI300", "MI300X"), ("V10", "V100"), ("cpus", CPU)]
)
def test_a_slip_of_the_fingers_is_understood(typed: str, near: str) -> None:
    assert any(name.startswith(near) for name in nearest_devices(typed))


def test_nothing_is_near_to_another_word() -> None:
    assert nearest_devices("potato") == []


def test_the_processor_is_a_name_and_no_row() -> None:
    assert is_processor("cpu")
    assert not is_processor("H100")
    assert find_device(CPU) is None


def test_known_figures() -> None:
    """Data sheets that many published numbers rest on."""
    h100, a100, v100 = (find_device(name) for name in ("H100", "A100", "V100"))
    assert h100 is not None
    assert a100 is not None
    assert v100 is not None
    assert (h100.peak.bf16, h100.memory.gb_s, h100.watts) == (989.4, 3350, 700)
    assert (a100.peak.bf16, a100.memory.gb_s, a100.watts) == (311.9, 2039, 400)
    assert (a100.link, a100.bus) == (Link("NVLink 3", 300), Link("PCIe 4.0 x16", 31))
    assert (v100.peak.fp16, v100.peak.bf16, v100.memory.gb_s) == (125.0, None, 900)
