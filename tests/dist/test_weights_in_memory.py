"""Weights go in and out one tensor at a time: the peak is bounded by the largest tensor, not by the model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.case import TINY
from benchmarks.meter import PeakMeter
from benchmarks.suites.interchange import make_source
from tests.house.checks import ROOT
from trainer.config.hf_folder import read_hf_model
from trainer.interchange.weight_files import WeightFiles

pytestmark = [pytest.mark.dist, pytest.mark.timeout(120)]

MIB = 1 << 20
CASE = replace(TINY, hidden_size=512, num_heads=8, num_layers=8, ffn_hidden_size=2048, vocab_size=2048)
"""GPT-2's architecture with 26M parameters."""
SLACK = 20 * MIB
"""What is read at once beside tensors, and what the heap keeps."""


def peaks(source: Path, place: Path) -> dict[str, int]:
    """Peak of what each way takes beyond what this process had before, in bytes."""
    from trainer.exporting import export_verb
    from trainer.importing import import_verb

    def whole() -> None:
        files = WeightFiles(source)
        assert len([files.read(name) for name in files.names()]) > 90

    # What the libraries take is no part of it.
    import_verb([str(place / "tiny"), str(place / "warm")])
    ways: dict[str, Callable[[], object]] = {
        "import": lambda: import_verb([str(source), str(place / "run"), "check=false"]),
        "export": lambda: export_verb([str(place / "run"), str(place / "out"), "check=false"], "fp32"),
        "compared import": lambda: import_verb([str(source), str(place / "compared run")]),
        "compared export": lambda: export_verb([str(place / "run"), str(place / "compared out")], "fp32"),
        "whole": whole,
    }
    found = {}
    for name, way in ways.items():
        meter = PeakMeter("cpu")
        meter.start()
        way()
        found[name] = meter.peak_bytes()
    return found


def test_a_model_in_and_out_takes_no_more_than_its_largest_tensors(tmp_path: Path) -> None:
    facts = make_source(CASE, tmp_path / "source")
    make_source(TINY, tmp_path / "tiny")
    assert facts["file_bytes"] > 100 * MIB
    # A process of its own: in a forked one, memory that its parent has freed is resident already.
    words = [sys.executable, "-m", "tests.dist.test_weights_in_memory", str(tmp_path / "source"), str(tmp_path)]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    # A tensor of ours and one of theirs.
    bound = 2 * facts["largest_tensor_bytes"] + SLACK
    assert found["import"] < bound, found
    assert found["export"] < bound, found
    # A block of ours in place of a tensor; and the libraries' own books of each tensor of theirs.
    layer = bound + facts["largest_layer_bytes"]
    assert found["compared import"] < layer, found
    assert found["compared export"] < layer, found
    # Some of what is held was free before, and was resident already.
    assert found["whole"] > 1.5 * layer, "the meter sees what is held"
    read = {name: WeightFiles(tmp_path / "out").read(name) for name in ("transformer.wte.weight",)}
    assert torch.equal(read["transformer.wte.weight"], WeightFiles(tmp_path / "source").read("transformer.wte.weight"))
    assert read_hf_model(tmp_path / "out", "SRC").model.num_layers == 8
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


if __name__ == "__main__":
    # The last line is read by the test.
    sys.stdout.write("\n" + json.dumps(peaks(Path(sys.argv[1]), Path(sys.argv[2]))) + "\n")
