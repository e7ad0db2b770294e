"""Everything that a check may look at, as one value. No torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trainer.config.plan import make_mesh
from trainer.config.schema import AdamImplementation, DeviceKind, OffloadKind, TridentConfig


@dataclass(frozen=True)
class Surroundings:
    """The machine, the environment of the process, and the run that is asked about."""

    config: TridentConfig = field(default_factory=TridentConfig)
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    root: Path = Path("/")
    """Folder that holds /proc, /sys and /dev."""
    hostfile: str | None = None
    """Path of the hostfile, if the run is one of several machines."""
    ssh_port: int | None = None
    """Port of the ssh servers of its hosts; None: ssh's own choice."""
    python: str = sys.executable

    @property
    def gpus(self) -> int:
        """Number of NVIDIA devices that the kernel shows, whether or not a driver can use them."""
        return sum(1 for _ in (self.root / "dev").glob("nvidia[0-9]*"))

    @property
    def on_gpus(self) -> bool:
        """True if ranks would compute on GPUs."""
        device = self.config.runtime.device
        return device is DeviceKind.cuda or (device is DeviceKind.auto and self.gpus > 0)

    @property
    def ranks_here(self) -> int:
        """Ranks that would be started on this machine; with a hostfile, the most that a line of it asks for."""
        if self.hostfile is not None:
            from trainer.launcher.hostfile import read_hostfile

            return max(node.slots for node in read_hostfile(self.hostfile))
        return make_mesh(self.config).size

    @property
    def world(self) -> int:
        """Ranks of the whole run."""
        if self.hostfile is not None:
            from trainer.launcher.hostfile import read_hostfile

            return sum(node.slots for node in read_hostfile(self.hostfile))
        return make_mesh(self.config).size

    @property
    def needs_cpu_adam(self) -> bool:
        """True if the run steps its weights with DeepSpeed's kernel for processors."""
        from trainer.engine.adam import adam_implementation

        return adam_implementation(self.config.optimizer, self.config.zero) is AdamImplementation.deepspeed_cpu

    @property
    def needs_nvme(self) -> bool:
        """True if the run keeps state on an NVMe disk."""
        return self.config.zero.offload is OffloadKind.nvme

    @property
    def needs_compiler(self) -> bool:
        """True if the run compiles anything."""
        return self.needs_cpu_adam or self.needs_nvme or self.config.runtime.compile
