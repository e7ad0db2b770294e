"""The table of accelerators: what their makers promise, and how a name finds its row. No torch.

One table for the whole product: the planner reads all of a row, the metrics read the peaks. A peak counts dense
arithmetic (no sparsity) with fp32 accumulation. Memory bandwidth and links are in GB/s, 1e9 bytes a second; a link
counts one direction. `Device.source` says where each figure comes from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher

CPU = "CPU"
"""Name that stands for the processor cores of a machine; they have no row, because no two processors are alike."""


@dataclass(frozen=True)
class Peak:
    """Dense TFLOP/s by number format; None: the device has no such unit."""

    fp16: float | None
    bf16: float | None
    fp32: float
    """Plain fp32 (not TF32): what torch computes unless told otherwise."""
    fp8: float | None = None
    """No run computes in it yet."""


@dataclass(frozen=True)
class Link:
    """A connection of a device."""

    name: str
    gb_s: float
    """GB/s in each direction."""


@dataclass(frozen=True)
class Memory:
    """A device's own memory."""

    gb: int
    """GB that the maker names."""
    usable_gib: float
    """GiB that PyTorch reports: without the driver's and error correction's share."""
    gb_s: float
    """Bandwidth in GB/s."""


@dataclass(frozen=True)
class Device:
    """A row of the table."""

    name: str
    pattern: str
    """Regular expression of the name that NVIDIA's driver gives, in any case; empty: no driver's name is known."""
    memory: Memory
    peak: Peak
    link: Link
    """Connection to other devices of the machine."""
    bus: Link
    """Connection to the memory of the machine."""
    watts: float
    """Largest power that it is made for."""
    per_node: int
    """Devices in a usual machine."""
    aliases: tuple[str, ...] = ()
    also: Mapping[str, str] = field(default_factory=dict)
    """Name of a field -> source of its figures, where that is not the row's."""
    origin: str = ""
    """Source of all other figures."""

    def source(self, part: str) -> str:
        """Return the source of the figures in a field, such as `memory` or `watts`."""
        return self.also.get(part, self.origin)


_SHEET = "vendor's data sheet, not re-checked"
_BOOK = "stas00/ml-engineering, compute/accelerator (data sheets)"
_WIRE = "stas00/ml-engineering, network (NVLink, PCIe and XGMI generations)"
_MEMORY = "capacity and bandwidth: data sheet; usable: as PyTorch reports it; not re-checked"

_BOOKED = {"memory": _MEMORY, "link": _WIRE, "bus": _WIRE}
"""Sources of a row whose peaks and power were read in the book."""
_LISTED = {"memory": _MEMORY, "bus": _WIRE}

_PCIE3, _PCIE4, _PCIE5 = Link("PCIe 3.0 x16", 16), Link("PCIe 4.0 x16", 31), Link("PCIe 5.0 x16", 63)
_NVLINK1, _NVLINK2, _NVLINK3 = Link("NVLink 1", 80), Link("NVLink 2", 150), Link("NVLink 3", 300)
_NVLINK4, _NVLINK5 = Link("NVLink 4", 450), Link("NVLink 5", 900)
_CHINA = Link("NVLink, 400 GB/s in both directions together", 200)

_VOLTA, _VOLTA_PCIE = Peak(125.0, None, 15.7), Peak(112.0, None, 14.0)
_AMPERE = Peak(311.9, 311.9, 19.5)
_HOPPER, _HOPPER_PCIE = Peak(989.4, 989.4, 66.9, 1979), Peak(756.4, 756.4, 51.2, 1513)
_HOPPER_NVL = Peak(835.5, 835.5, 60.3, 1671)
_BLACKWELL, _GRACE_BLACKWELL = Peak(2250.0, 2250.0, 75.0, 4500), Peak(2500.0, 2500.0, 80.0, 5000)
_C2C = Link("NVLink-C2C", 225)
_CDNA3 = Peak(1307.4, 1307.4, 163.4, 2615)


# Searched in order: a variant stands before the family that it belongs to.
# fmt: off
TABLE: tuple[Device, ...] = (
    Device("GB300", r"\bGB300\b", Memory(288, 276.0, 8000), _GRACE_BLACKWELL, _NVLINK5, _C2C, 1400, 4,
           origin=_SHEET, also=_LISTED),
    Device("GB200", r"\bGB200\b", Memory(186, 184.0, 8000), _GRACE_BLACKWELL, _NVLINK5, _C2C, 1200, 4,
           origin=_BOOK, also={**_BOOKED, "bus": _SHEET, "watts": _SHEET}),
    Device("B300", r"\bB300\b", Memory(288, 267.0, 8000), _BLACKWELL, _NVLINK5, _PCIE5, 1100, 8,
           origin=_SHEET, also=_LISTED),
    Device("B200", r"\bB200\b", Memory(192, 178.3, 8000), _BLACKWELL, _NVLINK5, _PCIE5, 1000, 8,
           origin=_BOOK, also=_BOOKED),
    Device("GH200-144GB", r"\bGH200 144G", Memory(144, 141.0, 4900), _HOPPER, _NVLINK4, Link("NVLink-C2C", 450), 700, 4,
           origin=_SHEET, also=_LISTED | {"bus": _SHEET}),
    Device("GH200", r"\bGH200\b", Memory(96, 94.5, 4000), _HOPPER, _NVLINK4, Link("NVLink-C2C", 450), 700, 4,
           ("GH200-96GB", "GH200-480GB"), origin=_SHEET, also=_LISTED | {"bus": _SHEET}),
    Device("H200-NVL", r"\bH200 NVL\b", Memory(141, 139.8, 4800), _HOPPER_NVL, _PCIE5, _PCIE5, 600, 8,
           ("H200-PCIe",), origin=_SHEET, also=_LISTED),
    Device("H200", r"\bH200\b", Memory(141, 139.8, 4800), _HOPPER, _NVLINK4, _PCIE5, 700, 8,
           ("H200-141GB",), origin=_BOOK, also=_BOOKED),
    Device("H100-PCIe", r"\bH100 PCIe\b", Memory(80, 79.1, 2000), _HOPPER_PCIE, _PCIE5, _PCIE5, 350, 8,
           ("H100-PCIe-80GB",), origin=_BOOK, also={**_BOOKED, "watts": _SHEET}),
    Device("H100-NVL", r"\bH100 NVL\b", Memory(94, 93.1, 3900), _HOPPER_NVL, _PCIE5, _PCIE5, 400, 8,
           ("H100-NVL-94GB", "H100-94GB"), origin=_SHEET, also=_LISTED),
    Device("H800", r"\bH800\b", Memory(80, 79.1, 3350), _HOPPER, _CHINA, _PCIE5, 700, 8,
           ("H800-80GB",), origin=_SHEET, also=_LISTED),
    Device("H100", r"\bH100\b", Memory(80, 79.1, 3350), _HOPPER, _NVLINK4, _PCIE5, 700, 8,
           ("H100-80GB",), origin=_BOOK, also=_BOOKED),
    Device("H100-96GB", "", Memory(96, 95.0, 2400), _HOPPER, _NVLINK4, _PCIE5, 500, 8,
           origin=_BOOK, also={**_BOOKED, "memory": "torchtitan, llama3_h100_202412: 96 GB of HBM2e at 2.4 TB/s",
                               "watts": "torchtitan, llama3_h100_202412: a limit of 500 W"}),
    Device("H20", r"\bH20\b", Memory(96, 95.0, 4000), Peak(148.0, 148.0, 44.0, 296), _NVLINK4, _PCIE5, 400, 8,
           ("H20-96GB",), origin=_SHEET, also=_LISTED),
    Device("A800", r"\bA800\b", Memory(80, 79.1, 2039), _AMPERE, _CHINA, _PCIE4, 400, 8,
           ("A800-80GB",), origin=_SHEET, also=_LISTED),
    Device("A100-PCIe-40GB", r"\bA100-PCIE-40GB\b", Memory(40, 39.4, 1555), _AMPERE, _PCIE4, _PCIE4, 250, 8,
           origin=_SHEET, also=_LISTED),
    Device("A100-PCIe-80GB", r"\bA100.*PCIE\b", Memory(80, 79.1, 1935), _AMPERE, _PCIE4, _PCIE4, 300, 8,
           ("A100-PCIe",), origin=_BOOK, also=_BOOKED),
    Device("A100-40GB", r"\bA100.*40GB", Memory(40, 39.4, 1555), _AMPERE, _NVLINK3, _PCIE4, 400, 8,
           origin=_BOOK, also=_BOOKED),
    Device("A100-80GB", r"\bA100\b", Memory(80, 79.1, 2039), _AMPERE, _NVLINK3, _PCIE4, 400, 8,
           ("A100",), origin=_BOOK, also=_BOOKED),
    Device("A40", r"\bA40\b", Memory(48, 44.4, 696), Peak(149.7, 149.7, 37.4), _PCIE4, _PCIE4, 300, 8,
           ("A40-48GB",), origin=_SHEET, also=_LISTED),
    Device("A30", r"\bA30\b", Memory(24, 23.5, 933), Peak(165.2, 165.2, 10.3), _PCIE4, _PCIE4, 165, 8,
           ("A30-24GB",), origin=_SHEET, also=_LISTED),
    Device("A10", r"\bA10\b", Memory(24, 22.0, 600), Peak(125.0, 125.0, 31.2), _PCIE4, _PCIE4, 150, 8,
           ("A10-24GB",), origin=_BOOK, also=_BOOKED),
    Device("A6000", r"\bRTX A6000\b", Memory(48, 47.5, 768), Peak(154.8, 154.8, 38.7), _PCIE4, _PCIE4, 300, 4,
           ("RTX-A6000-48GB",), origin=_SHEET, also=_LISTED),
    Device("RTX-6000-Ada", r"\bRTX 6000 Ada\b", Memory(48, 47.4, 960), Peak(364.2, 364.2, 91.1, 728), _PCIE4, _PCIE4,
           300, 4, origin=_SHEET, also=_LISTED),
    Device("L40S", r"\bL40S\b", Memory(48, 44.4, 864), Peak(362.1, 362.1, 91.6, 733), _PCIE4, _PCIE4, 350, 8,
           ("L40S-48GB",), origin=_BOOK, also=_BOOKED),
    Device("L40", r"\bL40\b", Memory(48, 44.4, 864), Peak(181.1, 181.1, 90.5, 362), _PCIE4, _PCIE4, 300, 8,
           ("L40-48GB",), origin=_SHEET, also=_LISTED),
    Device("L4", r"\bL4\b", Memory(24, 22.0, 300), Peak(121.0, 121.0, 30.3, 242), _PCIE4, _PCIE4, 72, 8,
           ("L4-24GB",), origin=_SHEET, also=_LISTED),
    Device("RTX-5090", r"\bRTX 5090\b(?! Laptop| D)", Memory(32, 31.3, 1792), Peak(209.5, 209.5, 104.8, 419), _PCIE5,
           _PCIE5, 575, 8, origin=_SHEET, also=_LISTED),
    Device("RTX-4090", r"\bRTX 4090\b(?! Laptop| D)", Memory(24, 23.6, 1008), Peak(165.2, 165.2, 82.6, 330), _PCIE4,
           _PCIE4, 450, 8, origin=_BOOK, also=_BOOKED),
    Device("RTX-3090", r"\bRTX 3090\b(?! Ti)", Memory(24, 23.7, 936), Peak(71.0, 71.0, 35.6), _PCIE4, _PCIE4, 350, 8,
           origin=_SHEET, also=_LISTED),
    Device("V100-PCIe-16GB", r"\bV100.*PCIE-16GB\b", Memory(16, 15.8, 900), _VOLTA_PCIE, _PCIE3, _PCIE3, 250, 8,
           origin=_BOOK, also=_BOOKED),
    Device("V100-PCIe-32GB", r"\bV100.*PCIE\b", Memory(32, 31.7, 900), _VOLTA_PCIE, _PCIE3, _PCIE3, 250, 8,
           ("V100-PCIe",), origin=_BOOK, also=_BOOKED),
    Device("V100-16GB", r"\bV100.*16GB\b", Memory(16, 15.8, 900), _VOLTA, _NVLINK2, _PCIE3, 300, 8,
           origin=_BOOK, also=_BOOKED),
    Device("V100-32GB", r"\bV100\b", Memory(32, 31.7, 900), _VOLTA, _NVLINK2, _PCIE3, 300, 8,
           ("V100",), origin=_BOOK, also=_BOOKED),
    Device("T4", r"\bT4\b", Memory(16, 14.6, 320), Peak(65.0, None, 8.1), _PCIE3, _PCIE3, 70, 4,
           ("T4-16GB",), origin=_BOOK, also=_BOOKED),
    Device("P100", r"\bP100-SXM2-16GB\b", Memory(16, 15.9, 732), Peak(21.2, None, 10.6), _NVLINK1, _PCIE3, 300, 8,
           ("P100-16GB",), origin=_SHEET, also=_BOOKED),
    Device("P100-PCIe", r"\bP100-PCIE-16GB\b", Memory(16, 15.9, 732), Peak(18.7, None, 9.3), _PCIE3, _PCIE3, 250, 8,
           ("P100-PCIe-16GB",), origin=_SHEET, also=_BOOKED),
    Device("MI325X", "", Memory(256, 255.7, 6000), _CDNA3, Link("XGMI to 7 others", 448), _PCIE5, 1000, 8,
           ("MI325X-256GB",), origin=_SHEET, also=_BOOKED),
    Device("MI300X", "", Memory(192, 191.7, 5300), _CDNA3, Link("XGMI to 7 others", 448), _PCIE5, 750, 8,
           ("MI300X-192GB",), origin=_BOOK, also=_BOOKED),
    Device("MI250X", "", Memory(64, 63.9, 1638), Peak(191.5, 191.5, 23.9), Link("XGMI, a half of the module's", 175),
           Link("Infinity Fabric", 36), 280, 8,
           ("MI250X-GCD",), origin=f"{_BOOK}, halved: a rank has one of the module's two dies",
           also={**_BOOKED, "bus": _SHEET, "watts": _SHEET}),
)
# fmt: on
"""Every accelerator that is known by name."""

_FILLERS = re.compile(r"nvidia|amd|tesla|geforce|instinct|quadro|rtx|gpu|generation|sxm\d*|hbm\d*e?|oam|dgx|hgx")
"""Words that say nothing which the rest of a name does not say: the module with NVLink is the usual one."""


def _words(name: str) -> frozenset[str]:
    """Return the words that tell a device from others, in one spelling: `A100-SXM4-80G` -> a100, 80gb."""
    split = re.findall(r"[a-z0-9]+", re.sub(r"rtx(?=\d)", "rtx ", name.lower()))
    return frozenset(re.sub(r"^(\d+)(g|gib)?$", r"\1gb", word) for word in split if not _FILLERS.fullmatch(word))


_OF_A_DRIVER = re.compile(r"(NVIDIA|Tesla|GeForce|Quadro) ", re.IGNORECASE)
_BY_WORDS: Mapping[frozenset[str], Device] = {
    _words(name): device for device in TABLE for name in (device.name, *device.aliases)
}
NAMES: tuple[str, ...] = (*(device.name for device in TABLE), CPU)
"""Names in the table, and that of a processor."""


def of_driver(name: str) -> Device | None:
    """Return the device that a driver's name means, as `torch.cuda.get_device_name` and nvidia-smi spell it.

    A MIG slice has the name of the whole device and a part of its speed, so it is none that is known.
    """
    if "MIG" in name:
        return None
    return next((row for row in TABLE if row.pattern and re.search(row.pattern, name, re.IGNORECASE)), None)


def find_device(name: str) -> Device | None:
    """Return the device that a person means, or None.

    `A100`, `a100-80gb`, `A100-SXM4-80GB` and `NVIDIA H100 80GB HBM3` are found, but `A100-70GB` is not: only a driver's
    name may say more than the table knows.
    """
    return _BY_WORDS.get(_words(name)) or (of_driver(name) if _OF_A_DRIVER.match(name) else None)


def is_processor(name: str) -> bool:
    """Return whether a name stands for the cores of a machine."""
    return name.upper() == CPU


def nearest_devices(name: str, most: int = 3) -> list[str]:
    """Return the names in the table that a mistyped one is nearest to, the nearest first; none if nothing is near."""

    def likeness(*known: str) -> float:
        return max(SequenceMatcher(None, name.upper(), other.upper(), autojunk=False).ratio() for other in known)

    scored = [(likeness(row.name, *row.aliases), -place, row.name) for place, row in enumerate(TABLE)]
    scored.append((likeness(CPU), -len(TABLE), CPU))
    return [known for score, _, known in sorted(scored, reverse=True)[:most] if score >= 0.6]
