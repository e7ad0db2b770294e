from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from trainer.comparing.answer import answer
from trainer.comparing.differing import LEDGER, TOLERANCE, Parting
from trainer.comparing.two_records import TwoRecords, compare_records, compare_verb
from trainer.config.schema import TridentConfig
from trainer.config.written import to_yaml
from trainer.errors import ConfigError
from trainer.records.run_record import read_record
from trainer.verbs.compare import VERB
from trainer.verbs.parse import parse

Row = dict[str, Any]
SIZES = {"final": 4, "warmup": []}


def make_run(
    folder: Path,
    steps: int = 20,
    row: Callable[[int], Row] = lambda step: {},
    config: Callable[[str], str] = lambda text: text,
    **stretch: Any,
) -> Path:
    """Write a run of `steps` logged steps; `row` changes the row of a step, `config` the text of the config."""
    (folder / "logs").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / "config.yaml").write_text(config(to_yaml(TridentConfig())))
    rows = [
        {
            "step": step,
            "train/loss": 6 - step / 10,
            "train/learning_rate": 1e-3,
            "perf/tokens_per_second": 1000.0,
            "time/step_ms": 100.0,
            "time/data_wait_ms": 1.0,
            LEDGER: 1000 + step,
            **row(step),
        }
        for step in range(1, steps + 1)
    ]
    kept = ({name: value for name, value in one.items() if value is not None} for one in rows)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in kept))
    begun = {"step": 1, "position": 0, "ledger": "", "seq_length": 8, "sample_length": 8, "stream": "s", "sizes": SIZES}
    (folder / "ledger.jsonl").write_text(json.dumps({**begun, **stretch}) + "\n")
    summary = {"status": "finished", "step": steps, "versions": {"torch": "2.13.0", "python": "3.11.7"}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def compared(a: Path, b: Path, tolerance: float = TOLERANCE) -> TwoRecords:
    return compare_records(read_record(a), read_record(b), tolerance)


def by_name(found: TwoRecords) -> Mapping[str, Parting]:
    return {one.name: one for one in found.results}


def test_two_runs_that_are_the_same(tmp_path: Path) -> None:
    found = compared(make_run(tmp_path / "a"), make_run(tmp_path / "b", steps=25))
    assert (found.settings, found.environment, found.events) == ([], [], [])
    assert (found.samples.first_difference, found.samples.last, found.samples.same_hash) == (None, 20, 20)
    loss = by_name(found)["train/loss"]
    assert (loss.common, loss.first, loss.beyond, loss.last, loss.last_a) == (20, None, None, 20, 4.0)
    assert list(answer(found)) == ["All results are the same to the last bit in all 20 steps that both have logged."]


def test_the_first_bit_and_the_first_step_beyond_the_tolerance(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a")

    def row(step: int) -> Row:
        loss = 6 - step / 10
        return {"train/loss": loss if step < 5 else math.nextafter(loss, 9) if step < 12 else loss * 1.02}

    b = make_run(tmp_path / "b", row=row, config=lambda text: text.replace("dtype: fp32", "dtype: bf16"))
    found = compared(a, b)
    loss = by_name(found)["train/loss"]
    assert (loss.first, loss.beyond, loss.a, loss.b) == (5, 12, 4.8, 4.8 * 1.02)
    assert loss.largest == pytest.approx(1 - 1 / 1.02)
    assert [(one.key, one.a, one.b, one.decides) for one in found.settings] == [
        ("precision.dtype", "fp32", "bf16", True)
    ]
    assert list(answer(found)) == [
        "The runs part at step 12: train/loss.",
        "Bits differ before that: of train/loss from step 5 on.",
        "What may be the cause:",
        "- precision.dtype differs",
        "At step 20, the last that both have logged, the loss of B is 4.0800, 0.08 above that of A.",
    ]
    exact = compared(a, b, tolerance=0.0)
    assert by_name(exact)["train/loss"].beyond == 5
    near = list(answer(compared(a, b, tolerance=0.1)))
    assert near[0] == (
        "The runs agree to within 0.02 (train/loss) in all 20 steps that both have logged; the first bit that differs "
        "is of train/loss at step 5."
    )
    assert near[1:3] == ["Rounding may differ because", "- precision.dtype differs"]


def test_other_samples_and_another_rate_come_first_among_the_causes(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a")
    b = make_run(
        tmp_path / "b",
        row=lambda step: {"train/loss": 7.0, "train/learning_rate": 2e-3, LEDGER: 5 + step},
        config=lambda text: text.replace("  seed: 1234", "  seed: 7").replace("  lr: 0.0003", "  lr: 0.0006"),
        stream="t",
    )
    found = compared(a, b)
    assert (found.samples.first_difference, found.samples.is_exact) == (1, True)
    said = list(answer(found))
    assert said[0] == "The runs part at step 1: train/learning_rate and train/loss."
    assert said[2].startswith("- they read other samples from step 1 on: train.seed is 1234 and 7")
    assert said[3] == "- the learning rate differs from step 1 on: 0.001 and 0.002"
    assert "- optimizer.lr differs" in said
    assert "- train.seed differs" in said


def test_a_skipped_step_has_no_loss_and_is_a_difference(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a")
    b = make_run(tmp_path / "b", row=lambda step: {"train/loss": None} if step == 7 else {})
    event = {"kind": "skip", "step": 7, "time": "2026-11-30T09:00:00+00:00", "reason": "not finite"}
    (b / "events.jsonl").write_text(json.dumps(event) + "\n")
    found = compared(a, b)
    loss = by_name(found)["train/loss"]
    assert (loss.first, loss.beyond, loss.a) == (7, 7, 5.3)
    assert math.isnan(loss.b)
    assert loss.largest == math.inf
    assert "- only B skipped a batch, which was not finite, at step 7" in answer(found)


def test_what_makes_a_run_slower(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a")
    slow = {"perf/tokens_per_second": 500.0, "time/step_ms": 200.0, "time/data_wait_ms": 95.0}
    found = compared(a, make_run(tmp_path / "b", row=lambda step: slow if step > 2 else {}))
    assert {one.name: one.change for one in found.costs}["perf/tokens_per_second"] == -0.5
    assert list(answer(found))[-1] == (
        "B is 50% slower: 500 tokens/s, A 1000; its steps wait 95 ms for data, those of A 1 ms."
    )


def test_versions_layout_and_keys_of_another_version(tmp_path: Path) -> None:
    def older(text: str) -> str:
        """Without a key that is at its default, and with one that is gone."""
        assert "  seed: 1234\n" in text
        return text.replace("  seed: 1234\n", "").replace("name: default", "name: nan") + "old_key: 3\n"

    a = make_run(tmp_path / "a", config=lambda text: text.replace("name: default", "name: nan"))
    b = make_run(tmp_path / "b", row=lambda step: {"train/loss": 1.0}, config=older)
    (b / "summary.json").write_text(json.dumps({"status": "finished", "step": 20, "versions": {"torch": "2.12.0"}}))
    (b / "plan.json").write_text(json.dumps({"layout": {"tensor_parallel_size": 2}}))
    found = compared(a, b)
    assert [(one.key, one.a, one.b) for one in found.environment] == [
        ("torch", "2.13.0", "2.12.0"),
        ("python", "3.11.7", "not there"),
        ("tensor parallel size", "not there", "2"),
    ]
    assert [(one.key, one.a, one.b) for one in found.settings] == [("old_key", "(no such key)", 3)]
    assert "- torch is 2.13.0 and 2.12.0" in answer(found)
    assert found.samples.why_unknown == f"this version cannot read the config of {b}"


def test_runs_that_share_no_step_or_wrote_nothing(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", steps=3)
    b = make_run(tmp_path / "b", row=lambda step: {"step": step + 100})
    assert list(answer(compared(a, b))) == ["The runs cannot be held against each other: no step was logged by both."]
    (b / "metrics.jsonl").write_bytes(b"\x00garbage")
    (b / "ledger.jsonl").write_text("{}\n")
    found = compared(a, b)
    assert found.samples.why_unknown == "a run wrote down nothing of what it read"
    assert found.b.notes


def test_other_streams_without_a_hash_of_both(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a")
    b = make_run(tmp_path / "b", row=lambda step: {LEDGER: 5} if step == 20 else {LEDGER: None}, steps=20, stream="t")
    (a / "metrics.jsonl").write_text(json.dumps({"step": 19, LEDGER: 3}) + "\n")
    found = compared(a, b)
    assert found.samples.why_unknown.startswith("their streams are others, and there is no step")


def test_the_screen_and_its_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = make_run(tmp_path / "a")
    b = make_run(tmp_path / "b", row=lambda step: {"train/loss": None if step == 7 else 4.0 + step})
    assert compare_verb([str(a), str(b)], TOLERANCE, as_json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"A  {a}: finished at step 20 of ")
    row = next(line for line in lines if line.startswith("  train/loss"))
    assert row.split("  ", 1)[1].split() == ["train/loss", "20", "from", "step", "1", "at", "step", "1", "5.9", "5"]
    assert any(line.startswith("The runs part at step 1: train/loss") for line in lines)
    assert compare_verb([str(a), str(b)], TOLERANCE, as_json=True) == 0
    held = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"JSON has no {word}"))
    assert {one["name"]: one["largest"] for one in held["results"]}["train/loss"] is None
    assert held["a"]["status"]["state"] == "finished"


@pytest.mark.timeout(30)
def test_a_folder_that_means_harm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, c = (make_run(tmp_path / name) for name in ("a", "b", "c"))
    (b / "config.yaml").write_text('x: &x [*x]\nname: "\\e[2J"\n')
    (c / "config.yaml").write_text((c / "config.yaml").read_text().replace("name: default", 'name: "\\e[2J"'))
    (c / "ledger.jsonl").unlink()
    os.mkfifo(c / "ledger.jsonl")
    assert compared(a, b).samples.why_unknown == f"this version cannot read the config of {b}"
    assert compared(a, c).samples.why_unknown == f"a file in {c} is none that can be read to its end"
    assert compare_verb([str(a), str(c)], TOLERANCE, as_json=False) == 0
    out = capsys.readouterr().out
    assert "?[2J" in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["a"], "usage must be `trident compare A B [--tolerance X] [--json]`, but is `trident compare a`"),
        (["a", "b", "c"], "usage must be"),
        (["a", "b", "--tolerance", "much"], "--tolerance must be a number from 0 to below 1, but is 'much'"),
        (["a", "b", "--tolerance", "nan"], "--tolerance must be a number from 0 to below 1, but is 'nan'"),
        (["a", "b", "--tolerance=1"], "--tolerance must be a number from 0 to below 1, but is '1'"),
        (["no/such/run", "b"], "RUN must be the folder of a run, but "),
    ],
)
def test_words_that_are_refused(words: list[str], error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        VERB.run(parse(VERB, words))
    assert str(caught.value).startswith(error)
