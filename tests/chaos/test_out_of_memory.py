"""A rank that is refused memory says what held it, and the change that it proposes trains under the same limit."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.chaos.world import Outcome, World, warm
from tests.helpers.command import run
from trainer import cli
from trainer.metrics.memory import STATUS, sizes_in

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

OUT_OF_MEMORY = 6
WORDS = (
    *("data=synthetic", "data.synthetic_tokens=50000", "model.vocab_size=256", "model.hidden_size=256"),
    *("model.num_layers=4", "model.num_attention_heads=4", "model.seq_length=256", "runtime.device=cpu"),
    *("train.steps=1", "checkpoint=none", "logging=local", "logging.console=plain"),
    *("batch.global_batch_size=16", "batch.micro_batch_size=16"),
)
LIMIT = 330 << 20
"""Bytes of data that the rank may have besides those of the warm process: too little for 16 sequences at once."""
CHANGE = re.compile(r"^hint: this change is predicted to fit: (.*) \(added to the same command\)$", re.MULTILINE)


def train_within(words: Sequence[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """Run the whole command in a rank that is refused memory beyond the limit."""
    warm()
    command = cli.main

    def limited(arguments: list[str]) -> int:
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (sizes_in(STATUS)["VmData"] + LIMIT, hard))
        return command(arguments)

    with monkeypatch.context() as patch:
        patch.setattr(cli, "main", limited)
        with World(words, 1, folder / "run", folder / "notes") as world:
            return world.end()


def rows(text: str) -> dict[str, tuple[str, str]]:
    """Return what stands in the table: purpose -> (predicted, measured)."""
    found = re.findall(r"^  +(\S.*?) {2,}(\S+) +(\S+)$", text, re.MULTILINE)
    return {name: (predicted, measured) for name, predicted, measured in found}


def test_the_change_that_is_proposed_fits_under_the_same_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = train_within(WORDS, tmp_path / "refused", monkeypatch)
    assert refused.codes == {0: OUT_OF_MEMORY}, refused.output
    assert "error: the model must fit into host memory" in refused.output
    where = r"^rank 0 ran out of memory in the (forward|backward) pass of step 1; it held, in MiB:$"
    assert re.search(where, refused.output, re.MULTILINE), refused.output
    table = rows(refused.output)
    # In fp32 every weight is a tensor of the model.
    assert table["weights"][0] == table["weights"][1]
    assert float(table["the most that it has held"][1]) <= float(table["the most that it could get"][1])
    change = CHANGE.search(refused.output)
    assert change is not None, refused.output
    changed = train_within((*WORDS, *change[1].split()), tmp_path / "changed", monkeypatch)
    assert changed.codes == {0: 0}, changed.output


ON_DEVICE = (
    *("data=synthetic", "data.synthetic_tokens=500000", "model.vocab_size=8192", "model.hidden_size=512"),
    *("model.num_layers=8", "model.num_attention_heads=8", "model.seq_length=1024", "runtime.device=cuda"),
    *("train.steps=1", "checkpoint=none", "logging=local", "logging.console=plain", "precision=bf16"),
    *("batch.global_batch_size=32", "batch.micro_batch_size=32"),
)
DEVICE_GIB = 4.0
"""Memory that torch's allocator may take: less than the activations of 32 sequences, more than those of 4."""
LIMITED = """
import sys
import torch
from trainer.cli import main
size = torch.cuda.mem_get_info()[1]
torch.cuda.set_per_process_memory_fraction(float(sys.argv[1]) * 2**30 / size)
sys.exit(main(["train", *sys.argv[2:]]))
"""


@pytest.mark.gpu
@pytest.mark.timeout(900)
def test_the_change_fits_on_a_device_whose_allocator_is_limited(tmp_path: Path) -> None:
    # In a process of its own: CUDA cannot be used in a fork of one that has used it.
    command = [sys.executable, "-c", LIMITED, str(DEVICE_GIB), *ON_DEVICE]
    refused = run([*command, f"run_dir={tmp_path / 'refused'}"], tmp_path, timeout_s=400)
    text = refused.out + refused.err
    assert refused.code == OUT_OF_MEMORY, text
    assert "error: the model must fit into device memory" in text
    table = rows(text)
    # Flat copies of half precision are padded.
    assert float(table["weights"][1]) == pytest.approx(float(table["weights"][0]), rel=0.02)
    assert float(table["the most that it could get"][1]) >= DEVICE_GIB
    change = CHANGE.search(text)
    assert change is not None, text
    changed = run([*command, *change[1].split(), f"run_dir={tmp_path / 'changed'}"], tmp_path, timeout_s=400)
    assert changed.code == 0, changed.out + changed.err
