"""Resharding takes the memory of the largest tensor and of a few blocks, not that of a file."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from tests.unit.checkpoint.reshard_fixtures import GPT2, make_run

ROOT = Path(__file__).resolve().parents[3]
MIB = 1 << 20
PROGRAM = """
import sys
from pathlib import Path
from trainer.cli import main

def of_this_process(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])

small, large, target = sys.argv[1:]
# Once for imports and thread pools, which are not what is measured.
assert main(["reshard", small, target + "_small", "layout=tp2_pp2"]) == 0
for layout in ("tp2_pp2", "single"):
    Path("/proc/self/clear_refs").write_text("5")
    before = of_this_process("VmRSS")
    assert main(["reshard", large, target + layout, f"layout={layout}"]) == 0
    print("PEAK", of_this_process("VmHWM") - before)
# Would a file in memory be seen?
read = next(Path(large).rglob("*.safetensors")).read_bytes()
print("PEAK", of_this_process("VmHWM") - before)
"""


def test_memory_is_bounded_by_the_largest_tensor(tmp_path: Path) -> None:
    # The embedding is 40 MiB, and of no other tensor's size; all together are 157 MiB.
    model = replace(GPT2, hidden_size=256, ffn_hidden_size=1024, num_layers=4, vocab_size=40_960)
    source = make_run(tmp_path / "large", model).parents[1]
    make_run(tmp_path / "small")
    largest, size = 4 * 40_960 * 256, sum(path.stat().st_size for path in source.rglob("*.safetensors"))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "small", source, tmp_path / "target"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *peaks, control = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("PEAK"))
    print([f"{peak / MIB:.0f} MiB" for peak in peaks], f"of {size / MIB:.0f} MiB")  # noqa: T201
    assert len(peaks) == 2
    assert size > 150 * MIB
    for peak in peaks:
        assert largest < peak < 2 * largest, "not even a second copy of the largest tensor has room"
    assert control > 3 * largest
