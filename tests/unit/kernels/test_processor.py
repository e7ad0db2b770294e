from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import CpuMatmul, Dtype, PrecisionConfig, RuntimeConfig, TridentConfig
from trainer.errors import ConfigError
from trainer.kernels import processor
from trainer.kernels.processor import leaves_avx512_to_onednn, multiplies_by_onednn

CPU = torch.device("cpu")
AMD = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 avx512f avx512bw\n\nprocessor\t: 1\n"
INTEL = AMD.replace("AuthenticAMD", "GenuineIntel")
OLD_AMD = AMD.replace(" avx512f avx512bw", "")
ARM = "processor\t: 0\nCPU implementer\t: 0x41\nFeatures\t: fp asimd\n"


def plan_of(chosen: CpuMatmul, dtype: Dtype = Dtype.fp32) -> RunPlan:
    config = TridentConfig(runtime=RuntimeConfig(cpu_matmul=chosen), precision=PrecisionConfig(dtype=dtype))
    return make_plan(config, 64)


@pytest.mark.parametrize(("cpuinfo", "expected"), [(AMD, True), (INTEL, False), (OLD_AMD, False), (ARM, False)])
def test_mkl_keeps_from_avx512_where_it_is_not_intels(
    cpuinfo: str, expected: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert leaves_avx512_to_onednn(cpuinfo) is expected
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    monkeypatch.setattr(processor, "_CPUINFO", path)
    assert multiplies_by_onednn(plan_of(CpuMatmul.auto), CPU) is expected
    assert multiplies_by_onednn(plan_of(CpuMatmul.onednn), CPU)
    assert not multiplies_by_onednn(plan_of(CpuMatmul.torch), CPU)


def test_it_is_never_chosen_where_it_has_no_effect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(AMD)
    monkeypatch.setattr(processor, "_CPUINFO", path)
    assert not multiplies_by_onednn(plan_of(CpuMatmul.auto, Dtype.bf16), CPU)
    assert not multiplies_by_onednn(plan_of(CpuMatmul.auto), torch.device("cuda", 0))
    path.unlink()
    assert not multiplies_by_onednn(plan_of(CpuMatmul.auto), CPU)


def test_a_build_without_onednn_is_an_error_only_if_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(AMD)
    monkeypatch.setattr(processor, "_CPUINFO", path)
    monkeypatch.setattr(processor, "has_onednn", lambda: False)
    assert not multiplies_by_onednn(plan_of(CpuMatmul.auto), CPU)
    with pytest.raises(ConfigError, match=r"runtime\.cpu_matmul=onednn needs PyTorch with oneDNN"):
        multiplies_by_onednn(plan_of(CpuMatmul.onednn), CPU)
