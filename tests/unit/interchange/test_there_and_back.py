"""Tiny models of every family through `trident import` and `trident export`: the same logits, the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.hf_families import TINY, hf_model
from tests.helpers.models import context_of
from tests.helpers.thread_group import run_ranks
from trainer.checkpoint.fragments import TensorFolder
from trainer.checkpoint.held_weights import foreign_weights
from trainer.checkpoint.store import find_checkpoint
from trainer.config.hf_folder import read_hf_model
from trainer.exporting import export_verb
from trainer.importing import import_verb
from trainer.logits_check import WrittenModel, compare, fixed_ids
from trainer.micro_batch import MicroBatch
from trainer.model.gpt import GPT, full_logits
from trainer.tensor_parallel.init import fill
from trainer.topology.groups import Group

LOGITS = 1e-5
"""Largest difference of two logits: fp32 sums of some dozen terms in another order."""


@pytest.fixture
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder that transformers saved, of the case that the test names."""
    folder = tmp_path / "source"
    hf_model(TINY[request.param]).save_pretrained(folder)
    return folder


def sharded(folder: Path, size: int) -> torch.Tensor:
    """Logits of a folder's weights read straight into tensor-parallel ranks."""
    found = read_hf_model(folder, "SRC")
    assert found.model.vocab_size is not None
    ids = fixed_ids(found.model.vocab_size, found.model.seq_length)
    vocab_size = found.model.vocab_size

    def body(group: Group) -> torch.Tensor:
        gpt = GPT(context_of(found.model, vocab_size, group, sequence_parallel=size > 1)).eval()
        weights = foreign_weights(folder, gpt.context.spec)
        fill(gpt, lambda spec, _: weights.read_shard("weight", spec, group.rank, size))
        with torch.no_grad():
            return full_logits(gpt(MicroBatch.of(ids)), gpt.context)

    return run_ranks(size, body)[0]


@pytest.mark.parametrize("source", TINY, indirect=True)
def test_a_family_comes_in_and_goes_out(source: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    assert import_verb([str(source), str(run)]) == 0
    path, manifest = find_checkpoint(run)
    model = read_hf_model(source, "SRC").model
    ours = WrittenModel(model, manifest.vocab_size, TensorFolder(path, manifest.files))
    assert compare(ours, source, tmp_path).largest < LOGITS

    # What read whole tensors and what reads the shards of two ranks agree.
    ids = fixed_ids(manifest.vocab_size, model.seq_length)
    whole = ours.logits(ids).transpose(0, 1)
    assert whole.std() > 0.05
    torch.testing.assert_close(sharded(source, 2), whole, rtol=0, atol=LOGITS)

    # Without a comparison, which has been made above.
    assert export_verb([str(run), str(out), "check=false"], "fp32") == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (source, out))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    first, second = (json.loads((folder / "config.json").read_text()) for folder in (source, out))
    assert {key: second[key] for key in first if key not in ("dtype", "transformers_version")} == {
        key: value for key, value in first.items() if key not in ("dtype", "transformers_version")
    }
    assert second["dtype"] == second["torch_dtype"] == "float32"
