"""Texts of a live model, cut in every way: its weights are those of its checkpoint, and so is what it writes."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from tests.dist.resume_fixtures import Run, Trainer, nothing_drawn
from tests.helpers.dist import run_distributed
from tests.helpers.parity import VOCABULARY, Case
from trainer.config.schema import EvalConfig
from trainer.data.tokenizer import ByteTokenizer
from trainer.loop.events import StepReport
from trainer.metrics.sink import Sample

pytestmark = [pytest.mark.dist, pytest.mark.timeout(300)]

STEPS = 2
TEXTS = EvalConfig(samples=2, prompts=(" !", "0"), max_tokens=5, temperature=3.0, seed=7)
"""Bytes of these prompts are ids that the tiny models know."""
CASES = (
    Case(pp=2, tp=2),
    Case(pp=2, tp=2, dtype="bf16"),
    Case(pp=2, tp=2, schedule="dualpipev", llama=True, tied=False),
    Case(tp=2, dp=2, zero=3, sequence_parallel=True),
    Case(dp=4, zero=3, offload="cpu", offload_parameters=True),
)
REPORT = StepReport(STEPS, 4.0, 1.0, 1e-3, 1, 1, 1.0, 0.0, None, 0, None, eval_loss=4.0)


@dataclass(frozen=True)
class Found:
    """What one rank saw of a case."""

    wrong: list[str]
    """Tensors that are not what the checkpoint holds."""
    written: list[Sample]
    expected: list[Sample]
    losses: list[float]
    """Of the steps after the texts."""


def write_in_layouts(rank: int, world_size: int, cases: Sequence[Case], folder: Path) -> list[Found]:
    return [
        _write(Trainer(Run(case), rank, world_size, folder / case.name), rank, folder / case.name) for case in cases
    ]


def _write(trainer: Trainer, rank: int, run_dir: Path) -> Found:
    from trainer.samples.samples_hook import SamplesHook
    from trainer.samples.weights import WeightGatherer

    plan = replace(trainer.plan, config=replace(trainer.plan.config, eval=TEXTS))
    trainer.train(STEPS)
    written: list[Sample] = []
    tokenizer = run_dir / "tokenizer"
    if rank == 0:
        tokenizer.mkdir(parents=True)
        ByteTokenizer().save(tokenizer)
    hook = SamplesHook(
        trainer.engine, plan, tokenizer, tokenizer.parent / "hugging_face", trainer.groups, written.extend
    )
    hook.on_start(1)
    hook.on_step(STEPS)
    hook.on_report(replace(REPORT, eval_loss=None))
    assert written == [], "without an evaluation there are no texts"
    with nothing_drawn():
        hook.on_report(REPORT)
    weights = WeightGatherer(trainer.engine, plan.config.zero.stage == 3, trainer.groups).gather()
    assert (weights is not None) == (rank == 0)
    trainer.save()
    losses = [loss for loss, _ in trainer.train(STEPS + 2)]
    wrong, expected = _compare(weights, run_dir, plan.config.precision.dtype.value) if weights is not None else ([], [])
    del trainer, hook
    gc.collect()
    return Found(wrong, written, expected, losses)


def _compare(weights: Mapping[str, torch.Tensor], run_dir: Path, dtype: str) -> tuple[list[str], list[Sample]]:
    from tests.helpers.generation import draws, stage_with
    from trainer.checkpoint.fragments import TensorFolder
    from trainer.checkpoint.store import find_checkpoint
    from trainer.config.compose import from_yaml
    from trainer.generation.sampling import Sampling
    from trainer.run_paths import CONFIG

    checkpoint, manifest = find_checkpoint(run_dir)
    tensors = TensorFolder(checkpoint, manifest.files)
    # What forward computes with is the master weight, rounded to the run's precision.
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    known = {name: tensors.read("weight", name).to(kind).float() for name in tensors.names()}
    wrong = sorted(known.keys() ^ weights.keys())
    wrong += [name for name in known.keys() & weights.keys() if not torch.equal(known[name], weights[name])]
    config = from_yaml((checkpoint / CONFIG).read_text())
    with nothing_drawn():
        model = stage_with(config.model, manifest.vocab_size, known)
    expected = []
    for prompt in TEXTS.prompts:
        for seed in range(TEXTS.seed, TEXTS.seed + TEXTS.samples):
            (ids,) = draws(
                model, [list(prompt.encode())], TEXTS.max_tokens, Sampling(temperature=TEXTS.temperature), seeds=[seed]
            )
            expected.append(Sample(STEPS, prompt, bytes(ids).decode()))
    return wrong, expected


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Found]]:
    ranks = run_distributed(write_in_layouts, 4, CASES, tmp_path_factory.mktemp("samples"), timeout_s=240)
    return {case.name: [rank[index] for rank in ranks] for index, case in enumerate(CASES)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_reporting_rank_has_the_whole_model_and_writes_what_it_would(
    case: Case, found: dict[str, list[Found]]
) -> None:
    first, *others = found[case.name]
    assert first.wrong == []
    assert first.written == first.expected
    assert len(first.written) == 4
    assert len({sample.text for sample in first.written}) > 1
    assert all(0 < len(sample.text.encode()) <= TEXTS.max_tokens for sample in first.written)
    assert [rank.written for rank in others] == [[], [], []]


def go_on(rank: int, world_size: int, case: Case, folder: Path) -> list[float]:
    return [loss for loss, _ in Trainer(Run(case), rank, world_size, folder).train(STEPS + 2)][STEPS:]


def test_training_goes_on_as_if_nothing_had_been_written(found: dict[str, list[Found]], tmp_path: Path) -> None:
    case = CASES[3]
    assert run_distributed(go_on, 4, case, tmp_path)[0] == found[case.name][0].losses
    assert VOCABULARY < 256
