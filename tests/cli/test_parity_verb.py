"""`trident parity`: words that cannot be proved are answered before anything is started."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from tests.cli.conftest import Run
from trainer.config.compose import compose
from trainer.errors import ConfigError
from trainer.proving import parity
from trainer.proving.parity import Asked, ParityFailed, prove
from trainer.proving.proof_trials import proof_of

ONE = {
    "trial": "pp2, 4 micro-batches, fp32",
    "ranks": 2,
    "axes": ["pipeline"],
    "is_of_the_run": False,
    "agrees": True,
    "errors": {"loss": 6e-8, "gradient norm": 6e-8, "gradient": 7e-7, "change": 5e-5},
    "worst": {},
    "findings": [],
    "failure": None,
    "details": None,
    "seconds": 0.1,
}
WRONG = {**ONE, "agrees": False, "findings": [{"text": f"the gradient of x{n} is off"} for n in range(6)]}
FAULT = {"axes": ["pipeline"], "title": "pipeline", "vectors": None, "trial": ONE["trial"]}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "0"], "--steps must be a number from 1 to 20, but is '0'"),
        (["--steps", "many"], "--steps must be a number from 1 to 20, but is 'many'"),
        (["--layouts", "tp2,both"], "--layouts must name layouts such as tp2_pp2, joined by commas, but has 'both'"),
        (["--layouts", "auto"], "--layouts must name layouts such as tp2_pp2, joined by commas, but has 'auto'"),
        (["--layouts", "tp4_pp4"], "--layouts must name layouts of at most 8 ranks"),
        (
            ["--layouts", "tp3"],
            "--layouts has tp3, which this model cannot have: model.num_attention_heads",
        ),
        (
            ["layout=tp71", "model.num_attention_heads=71", "model.hidden_size=568", "model.ffn_hidden_size=142"],
            "layout.tensor_parallel_size (71) must have a factor of at most 5",
        ),
        (["layout=tp3"], "model.num_attention_heads (8) must be divisible by layout.tensor_parallel_size (3)"),
        (["--layouts", "tp2,"], "--layouts must name layouts such as tp2_pp2, joined by commas, but has ''"),
        (["--out", "/proc/nope/p.json"], "--out must name a file that can be written, but /proc/nope/p.json cannot"),
        (["--out", "/proc/p.json"], "--out must name a file that can be written, but /proc/p.json cannot"),
        (["--out", "."], "--out must name a file, but . is a folder"),
        (["modle=gpt2_124m"], "modle"),
    ],
)
def test_what_cannot_be_proved_is_said(words: list[str], said: str, trident: Run) -> None:
    answer = trident("parity", *words)
    assert answer.code == 2
    assert said in answer.err
    assert "Traceback" not in answer.err


def answered(answers: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    def pretend(*args: object) -> Iterator[dict[str, Any]]:
        yield from answers

    monkeypatch.setattr(parity, "_answers", pretend)


def test_a_proof_ends_with_0_and_its_certificate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = compose(["model=gpt_debug"])
    count = len(proof_of(config, None).trials)
    answered([ONE] * count + [{"faults": []}], monkeypatch)
    out = tmp_path / "deep" / "parity.json"
    assert prove(config, None, Asked(out=out)) == 0
    record = json.loads(out.read_text())
    assert record["agrees"] is True
    assert len(record["trials"]) == count
    assert record["config"].startswith("model:")
    assert f"PROVED   all {count} trials agree with the oracle" in capsys.readouterr().out


def test_a_difference_ends_with_1_and_names_tensor_and_axis(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answered([WRONG, {"faults": [FAULT]}], monkeypatch)
    assert prove(compose([]), None, Asked(out=tmp_path / "p.json")) == 1
    said = capsys.readouterr().out
    assert "at fault: pipeline, as pp2, 4 micro-batches, fp32 shows\n  the gradient of x0 is off\n" in said
    assert f"  and 2 more, in {tmp_path}/p.json\n" in said
    assert "DIFFERS  1 of 1 trials do not agree" in said


def test_json_is_all_that_is_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answered([WRONG, {"faults": [FAULT]}], monkeypatch)
    assert prove(compose([]), None, Asked(out=tmp_path / "p.json", as_json=True)) == 1
    assert json.loads(capsys.readouterr().out)["faults"] == [FAULT]


def test_a_proof_without_all_of_its_trials_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answered([ONE, {"faults": []}], monkeypatch)
    assert prove(compose([]), None, Asked(out=tmp_path / "p.json")) == 1


def test_a_process_that_dies_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def dies(writing: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["bash", "-c", "read; echo 'MemoryError: all gone' >&2; exit 1"],
            stdin=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )

    monkeypatch.setattr(parity, "_started", dies)
    with pytest.raises(ParityFailed, match="must end with a result, but did not: MemoryError: all gone"):
        prove(compose([]), None, Asked(out=tmp_path / "p.json"))


def test_a_model_that_no_tensor_size_shards_is_proved_without() -> None:
    config = compose(["model.num_attention_heads=7", "model.hidden_size=56", "model.ffn_hidden_size=143"])
    proof = proof_of(config, None)
    assert all(one.setting.tp == 1 for one in proof.trials)
    assert proof.left_out[0] == "tensor parallelism: no size up to 5 shards 7 heads of 7"


def test_an_unknown_number_of_replicas_is_tried_with_several() -> None:
    names = [one.name for one in proof_of(compose(["layout=tp2_pp2"]), None).trials if one.is_chosen]
    assert names == ["tp2_pp2, 4 micro-batches, fp32", "tp2_pp2_dp2, 2 micro-batches, ZeRO-1, fp32"]


def test_a_layout_of_too_many_ranks_is_told() -> None:
    with pytest.raises(ConfigError, match="at most 8 ranks"):
        proof_of(compose([]), None, ("dp16",))
