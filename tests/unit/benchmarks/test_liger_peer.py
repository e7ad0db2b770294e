from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.case import CASES
from benchmarks.contenders import transformers_trainer
from benchmarks.contenders.transformers_trainer import check_liger
from benchmarks.worker import Unavailable

LLAMA = CASES["tiny_llama"]


def test_liger_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_trainer, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"^use_liger_kernel needs liger-kernel: pip install liger-kernel$"):
        check_liger(LLAMA)


def test_liger_knows_some_models_and_needs_a_gpu() -> None:
    pytest.importorskip("liger_kernel")
    with pytest.raises(Unavailable, match=r"^liger-kernel has nothing for models of type gpt2; it knows LLaMA shapes$"):
        check_liger(CASES["tiny"])
    with pytest.raises(Unavailable, match=r"^Liger's kernels need a GPU$"):
        check_liger(LLAMA)
    check_liger(replace(LLAMA, device="cuda"))
