"""The account that torch and DeepSpeed give of themselves, as JSON, in a process of its own: they may crash.

`python -m trainer.doctor.software_probe`
"""

from __future__ import annotations

import contextlib
import io
import json
import re

from trainer.errors import fault_line
from trainer.log import tell

_ESCAPES = re.compile(r"\x1b\[\d+m|\s*\[WARNING\]\s*")


def torch_facts() -> dict[str, object]:
    """Return versions and back ends of torch, and whether it reaches the GPUs."""
    import torch
    import torch.distributed as dist

    found: dict[str, object] = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "has_gloo": dist.is_available() and dist.is_gloo_available(),
        "has_nccl": dist.is_available() and dist.is_nccl_available(),
        "devices": torch.cuda.device_count() if torch.version.cuda else 0,
    }
    if torch.version.cuda:
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
            found["names"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        except (RuntimeError, AssertionError) as error:
            found["problem"] = fault_line(error)
    if found["has_nccl"]:
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    return found


def deepspeed_facts() -> dict[str, object]:
    """Return DeepSpeed's version and its kernels: which came compiled, which it would compile, and which it cannot."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from deepspeed.git_version_info import accelerator_name, installed_ops
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    accelerator = get_accelerator()._name
    kernels = []
    for name, builder in ALL_OPS.items():
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            try:
                compatible = bool(builder.is_compatible(verbose=True))
            # DeepSpeed asserts, and looks for programs that may be missing.
            except Exception as error:
                compatible = False
                tell(fault_line(error))
        lines = [_ESCAPES.sub("", line).strip() for line in said.getvalue().splitlines()]
        kernels.append(
            {
                "name": name,
                "compiled": bool(installed_ops.get(name)) and accelerator_name == accelerator,
                "can_compile": compatible,
                "said": next((line for line in lines if line), ""),
            }
        )
    return {"version": deepspeed.__version__, "accelerator": accelerator, "kernels": kernels}


def main() -> None:
    """Print the facts, or why there are none."""
    found: dict[str, object] = {}
    for name, look in (("torch", torch_facts), ("deepspeed", deepspeed_facts)):
        try:
            found[name] = look()
        # Broken installations raise everything that there is.
        except Exception as error:
            found[name] = {"error": fault_line(error)}
    tell(json.dumps(found))


if __name__ == "__main__":
    main()
