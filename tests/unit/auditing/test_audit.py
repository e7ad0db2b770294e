from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.auditing.audit_fixtures import TEXTS, PlayedRun
from tests.unit.data.data_fixtures import write_text
from trainer.auditing.audit import Asked, audit_verb
from trainer.checkpoint.manifest import MANIFEST, read_manifest
from trainer.checkpoint.store import CheckpointStore
from trainer.errors import ConfigError, DataError

PROVEN = "proven, since {} has the hash of the tokens that config and data give"


def audit(capsys: pytest.CaptureFixture[str], *runs: PlayedRun | Path, **words: Any) -> tuple[int, list[str]]:
    run, other = (str(one.run if isinstance(one, PlayedRun) else one) for one in (*runs, *runs)[:2])
    capsys.readouterr()
    code = audit_verb(Asked(run, other if len(runs) > 1 else None, **words))
    return code, capsys.readouterr().out.splitlines()


def test_a_run_that_only_went_on_is_proven(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = audit(capsys, PlayedRun(tmp_path, "a").train(11).finish())
    assert code == 0
    assert lines == [
        f"run     {tmp_path}/a, steps 1 to 11",
        "read    steps 1 to 11: tokens 0 to 703 of the stream, 4 sequences of 16 tokens a step",
        f"steps 1 to 11: {PROVEN.format('summary.json')}",
    ]


def test_a_resumed_run_whose_batch_and_sequences_changed_is_proven(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = PlayedRun(tmp_path, "a", batch__rampup_steps=[3], batch__rampup_sizes=[2]).train(8)
    run.resume(5).begin(batch__global_batch_size=6, model__seq_length=8)
    code, lines = audit(capsys, run.train(13))
    assert code == 0
    assert lines[1:] == [
        "read    steps 1 to 5: tokens 0 to 223 of the stream, 2 to 4 sequences of 16 tokens a step",
        "read    steps 6 to 12: tokens 224 to 559 of the stream, 6 sequences of 8 tokens a step",
        f"steps 1 to 12: {PROVEN.format('metrics.jsonl')}",
    ]


def test_a_rewound_run_is_proven_and_tells_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = PlayedRun(tmp_path, "a").train(8).rewind(5)
    run.paths.logs.mkdir()
    skip = {"step": 9, "position": 512, "reason": "spike", "samples": [1, 2]}
    run.paths.skipped_batches.write_text(f"{json.dumps(skip)}\n{{broken")
    code, lines = audit(capsys, run.train(10))
    assert code == 0
    assert lines[1:] == [
        "read    steps 1 to 5: tokens 0 to 319 of the stream, 4 sequences of 16 tokens a step",
        "read    steps 6 to 10: tokens 512 to 831 of the stream, 4 sequences of 16 tokens a step",
        "back    to step 5; 192 tokens behind it were left out",
        "skipped step 9 (spike), at token 512: read, but not learned from",
        f"steps 1 to 10: {PROVEN.format('checkpoints/step_10')}",
    ]


def test_a_forked_run_is_proven_with_the_steps_of_the_run_that_it_began_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = PlayedRun(tmp_path, "a").train(9)
    fork = first.fork(tmp_path, "b", 5, train__seed=7).train(10)
    code, lines = audit(capsys, fork)
    assert code == 0
    assert lines[1:] == [
        f"read    steps 1 to 5: tokens 0 to 319 of the stream, 4 sequences of 16 tokens a step, read by {tmp_path}/a",
        "read    steps 6 to 10: tokens 0 to 319 of the stream, 4 sequences of 16 tokens a step",
        f"steps 1 to 10: {PROVEN.format('checkpoints/step_10')}",
    ]
    shutil.rmtree(first.run)
    code, lines = audit(capsys, fork)
    assert code == 0
    assert lines[2] == f"note    steps 1 to 5 are those of {tmp_path}/a/checkpoints/step_5, which is not there any more"
    assert lines[3] == f"steps 6 to 10: {PROVEN.format('checkpoints/step_10')}"


def test_a_run_that_is_going_on_is_proven_up_to_its_last_hash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = PlayedRun(tmp_path, "a").train(7)
    with run.paths.metrics.open("a") as file:
        file.write('{"step": 8, "data/sample_l')
    (run.paths.checkpoint_folder / ".step_8.partial").mkdir()
    code, lines = audit(capsys, run)
    assert (code, lines[-1]) == (0, f"steps 1 to 6: {PROVEN.format('metrics.jsonl')}")


@pytest.mark.parametrize("journal", ["none", "empty", "cut"])
def test_without_its_journal_a_run_is_proven_as_far_as_its_checkpoints_say_where_it_read(
    journal: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = PlayedRun(tmp_path, "a").train(12).rewind(10).train(20)
    whole = run.paths.journal.read_text()
    if journal == "none":
        run.paths.journal.unlink()
    else:
        run.paths.journal.write_text("" if journal == "empty" else whole[: len(whole) - 30])
    code, lines = audit(capsys, run)
    verdicts = [line for line in lines if line.startswith(("step ", "steps "))]
    assert code == 1
    assert verdicts[0] == f"steps 1 to 10: {PROVEN.format('checkpoints/step_10')}"
    assert "not known, since metrics.jsonl has another hash, and nothing says where the run read" in verdicts[1]
    assert verdicts[-1] == f"steps 16 to 20: {PROVEN.format('checkpoints/step_20')}"
    noted = "note    ledger.jsonl is not there, so what was read is taken from the config and the checkpoints"
    assert (noted in lines) == (journal != "cut")


def test_another_hash_in_a_checkpoint_is_found_and_what_follows_is_judged_on_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = PlayedRun(tmp_path, "a").train(15)
    folder = CheckpointStore(run.run).path(10)
    manifest = read_manifest(folder)
    state = {**manifest.train_state, "sample_ledger": "ab" * 16}
    (folder / MANIFEST).write_text(replace(manifest, train_state=state).to_json())
    code, lines = audit(capsys, run)
    assert code == 1
    wrong = "NOT WHAT WAS READ, since {} has another hash than the tokens that config and data give"
    assert lines[2:5] == [
        f"steps 1 to 8: {PROVEN.format('metrics.jsonl')}",
        f"steps 9 to 10: {wrong.format('checkpoints/step_10')}",
        f"steps 11 to 12: {wrong.format('metrics.jsonl')}",
    ]


def test_a_token_that_was_another_one_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = PlayedRun(tmp_path, "a").train(10)
    shard = next(run.prepared.folder.glob("train*.bin"))
    content = bytearray(shard.read_bytes())
    content[:] = [byte ^ 1 if place % 2 == 0 else byte for place, byte in enumerate(content)]
    shard.write_bytes(content)
    code, lines = audit(capsys, run)
    assert code == 1
    assert lines[2].startswith("steps 1 to 2: NOT WHAT WAS READ, since metrics.jsonl")


def test_data_that_are_gone_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = PlayedRun(tmp_path, "a").train(6)
    (tmp_path / "text.jsonl").unlink()
    # The text need not be there.
    assert audit(capsys, run)[0] == 0
    shutil.rmtree(run.cache)
    with pytest.raises(
        DataError, match=rf"the tokens that {run.run} read must be in the cache .*, but .* has none"
    ) as fault:
        audit(capsys, run)
    assert fault.value.exit_code == 2
    assert capsys.readouterr().out.startswith(f"run     {run.run}, steps 1 to 6\n")


def test_data_that_changed_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = PlayedRun(tmp_path, "a").train(6)
    shutil.rmtree(run.cache)
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": " ".join(reversed(TEXTS))}))
    run.begin()
    with pytest.raises(DataError, match=r"must give the stream that .* read .*, but .* gives another one"):
        audit(capsys, run)


@pytest.mark.parametrize("what", ["nothing", "file", "empty", "config", "checkpoint", "begun"])
def test_a_folder_that_is_no_run(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, expected = tmp_path / "x", r"RUN must be the folder of a run, but .*/x is none"
    if what == "file":
        path.write_text("")
    elif what == "empty":
        path.mkdir()
        expected = r"RUN must be the folder of a run, but .*/x holds no config.yaml"
    elif what == "config":
        path.mkdir()
        (path / "config.yaml").write_text("model: [")
        expected = r"RUN must hold a run that this version can read, but .*/x/config.yaml cannot be read: "
    elif what == "checkpoint":
        path = CheckpointStore(PlayedRun(tmp_path, "x").train(5).run).path(5)
        expected = r"RUN must be the folder of a run, but .*/step_5 is a checkpoint of one; use .*/x$"
    elif what == "begun":
        PlayedRun(tmp_path, "x")
        expected = r".*/x must have read a step, but no row, checkpoint or summary there has a hash"
    with pytest.raises(ConfigError, match=expected) as fault:
        audit(capsys, path)
    assert fault.value.exit_code == 2


def test_the_documents_of_a_step_are_shown_with_their_boundaries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = PlayedRun(tmp_path, "a", model__seq_length=128).train(9)
    code, lines = audit(capsys, run, step=3)
    assert code == 0
    assert lines[-1] == f"steps 1 to 4: {PROVEN.format('metrics.jsonl')}"
    assert sum(line.startswith("  ⏐") for line in lines) > 5
    found = audit_json(capsys, run, step=3)[1]["sequences"]
    assert [sum(part["tokens"] for part in one["parts"]) for one in found] == [128] * 4
    # Whatever begins in a sequence begins as a document does, unless the sequence ends before; the others go on.
    parts = [part for one in found for part in one["parts"]]
    assert [part["is_begun_before"] for part in parts] == [
        not "document".startswith(part["text"][:8]) for part in parts
    ]
    shutil.rmtree(run.paths.tokenizer)
    ids = audit_json(capsys, run, step=3)[1]["sequences"][0]["parts"][0]["text"]
    assert all(0 <= int(one) <= 256 for one in ids.split())
    with pytest.raises(ConfigError, match=r"--step must be a step that .* has read, 1 to 8, but is 99"):
        audit(capsys, run, step=99)
    with pytest.raises(ConfigError, match="--step must be at least 1, but is 0"):
        audit(capsys, run, step=0)


def audit_json(capsys: pytest.CaptureFixture[str], *runs: PlayedRun, **words: Any) -> tuple[int, dict[str, Any]]:
    code, lines = audit(capsys, *runs, as_json=True, **words)
    return code, json.loads("\n".join(lines))


def test_json_has_every_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = PlayedRun(tmp_path, "a").train(6)
    code, found = audit_json(capsys, run)
    assert code == 0
    assert found["is_good"]
    assert [one["last_step"] for one in found["runs"]] == [6]
    assert [proof["verdict"] for proof in found["runs"][0]["proofs"]] == ["proven"] * 4
    assert found["runs"][0]["proofs"][-1]["ledger"] == run.state.sample_ledger


def test_a_blend_is_proven_and_its_sources_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("code", "prose"):
        records = (json.dumps({"text": f"{name} {text}"}) + "\n" for text in TEXTS)
        (tmp_path / f"{name}.jsonl").write_text("".join(records))
    blend = {
        name: {"weight": weight, "files": [str(tmp_path / f"{name}.jsonl")]}
        for name, weight in (("code", 3), ("prose", 1))
    }
    run = PlayedRun(tmp_path, "a", data__blend=blend, model__seq_length=64).train(9).resume(5).train(10)
    code, lines = audit(capsys, run, step=7)
    assert code == 0
    assert lines[-1] == f"steps 1 to 8: {PROVEN.format('metrics.jsonl')}"
    shown = [line for line in lines if line.startswith("step 7, sequence")]
    assert [line.split(",")[1].split(" of ")[1] for line in shown].count("code") == 3
    begun = [line.split("tokens  ")[1][:5] for line in lines if line.startswith("  ⏐")]
    assert begun
    assert set(begun) <= {"code ", "prose"}


def test_a_run_whose_data_were_appended_to_is_proven(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys: dict[str, Any] = {"data__on_change": "continue", "data__validation_fraction": 0.0}
    run = PlayedRun(tmp_path, "a", **keys).train(8)
    same = PlayedRun(tmp_path, "b", **keys).train(8)
    with (tmp_path / "text.jsonl").open("a") as file:
        file.write("".join(json.dumps({"text": f"appended {text}"}) + "\n" for text in TEXTS))
    run.begin()
    code, lines = audit(capsys, run.resume(5).train(8))
    assert code == 0
    changed = [line for line in lines if line.startswith("data    changed at sample 20 of the stream: ")]
    assert len(changed) == 1
    # The row behind the change is hashed with the plan, and there is no checkpoint behind it yet.
    assert lines[-1] == f"steps 1 to 8: {PROVEN.format('metrics.jsonl')}"
    code, lines = audit(capsys, run.train(10))
    assert (code, lines[-1]) == (0, f"steps 1 to 10: {PROVEN.format('checkpoints/step_10')}")
    code, lines = audit(capsys, same, run)
    assert code == 1
    assert "step 6 is the first whose samples differ:" in lines


REPLACED = "not proven: the run has replaced the data that they read"


def test_a_run_whose_data_were_replaced_is_proven_from_there_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys: dict[str, Any] = {"data__on_change": "continue", "data__validation_fraction": 0.0}
    run = PlayedRun(tmp_path, "a", **keys).train(5)
    same = PlayedRun(tmp_path, "b", **keys).train(8)
    # Fewer, and others: a sample that was read may be behind the end now.
    write_text(tmp_path / "text.jsonl", "".join(json.dumps({"text": f"other {text}"}) + "\n" for text in TEXTS[:50]))
    run.begin()
    run.resume(5).train(9)
    code, lines = audit(capsys, run)
    assert code == 0
    assert lines[-2:] == [f"steps 1 to 5: {REPLACED}", f"steps 6 to 8: {PROVEN.format('metrics.jsonl')}"]
    with pytest.raises(DataError, match=r"must hold the tokens of step 3 to be looked at, but were replaced since"):
        audit(capsys, run, step=3)
    code, lines = audit(capsys, run, same)
    assert code == 1


def test_a_change_that_was_taken_back_before_it_was_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = PlayedRun(tmp_path, "a", data__on_change="continue").train(5)
    text = (tmp_path / "text.jsonl").read_text()
    write_text(tmp_path / "text.jsonl", text + json.dumps({"text": "appended " * 50}) + "\n")
    run.begin()
    run.resume(5).train(7, saves=False)
    write_text(tmp_path / "text.jsonl", text)
    run.begin()
    code, lines = audit(capsys, run.resume(5).train(10))
    assert (code, lines[-1]) == (0, f"steps 1 to 10: {PROVEN.format('checkpoints/step_10')}")


def test_a_source_that_was_taken_out_of_a_blend_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_text(tmp_path / "code.jsonl", "".join(json.dumps({"text": f"code {text}"}) + "\n" for text in TEXTS))
    sources = {name: {"weight": 1.0, "files": [f"{tmp_path}/{name}.jsonl"]} for name in ("text", "code")}
    keys = {"data__blend": sources, "data__on_change": "continue"}
    run = PlayedRun(tmp_path, "a", **keys).train(5)
    run.begin(data__blend={"code": sources["code"]})
    code, lines = audit(capsys, run.resume(5).train(10))
    assert code == 0
    assert lines[-2:] == [f"steps 1 to 5: {REPLACED}", f"steps 6 to 10: {PROVEN.format('checkpoints/step_10')}"]


def test_a_fork_that_lies_where_its_origin_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fork = PlayedRun(tmp_path, "a").train(5).fork(tmp_path, "b", 5).train(10)
    shutil.rmtree(tmp_path / "a")
    fork.run.rename(tmp_path / "a")
    code, lines = audit(capsys, tmp_path / "a")
    assert code == 0
    assert f"note    steps 1 to 5 are those of {tmp_path}/a/checkpoints/step_5, which is not there any more" in lines


def test_files_that_are_damaged_say_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = PlayedRun(tmp_path, "a").train(10)
    with run.paths.metrics.open("a") as file:
        file.write('{"step": 10, "data/sample_ledger": null}\n{"step": 10, "data/sample_ledger": "x"}\n')
    begun = json.loads(run.paths.journal.read_text())
    with run.paths.journal.open("a") as file:
        file.write(json.dumps(begun | {"step": 3, "sizes": {"final": 0, "warmup": []}}) + "\n")
    code, lines = audit(capsys, run)
    assert (code, lines[-1]) == (0, f"steps 1 to 10: {PROVEN.format('checkpoints/step_10')}")
    with run.paths.journal.open("a") as file:
        file.write(json.dumps(begun | {"step": 10**15}) + "\n")
    code, lines = audit(capsys, run)
    assert (code, lines[-1]) == (0, f"steps 1 to 10: {PROVEN.format('checkpoints/step_10')}")
    assert any(
        "a start at step 1,000,000,000,000,000, but the run is not known to have come that far" in line
        for line in lines
    )
    run.paths.journal.unlink()
    run.paths.journal.mkdir()
    with pytest.raises(ConfigError, match="must hold files that can be read"):
        audit(capsys, run)


def test_runs_that_read_the_same_are_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = PlayedRun(tmp_path, "a").train(12), PlayedRun(tmp_path, "b").train(8).resume(5).train(9)
    code, lines = audit(capsys, one, other)
    assert code == 0
    assert lines[-2:] == [
        "both runs wrote down the same hash behind step 8: up to it they read the same",
        "the runs read the same samples in all 8 steps that both have done",
    ]


@pytest.mark.parametrize(
    ("keys", "first", "reason"),
    [
        ({"train__seed": 5}, 1, "train.seed is 1234 and 5"),
        ({"batch__global_batch_size": 6}, 1, "the step has 4 sequences and 6"),
        ({"batch__rampup_steps": [3], "batch__rampup_sizes": [2]}, 1, "the step has 4 sequences and 2"),
        ({"model__seq_length": 8, "batch__global_batch_size": 4}, 1, "its sequences have 16 tokens and 8"),
        ({"data__max_documents": 300}, 1, "data.max_documents is null and 300"),
    ],
)
def test_the_first_difference_of_two_runs_and_its_reason(
    keys: dict[str, Any], first: int, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = audit(capsys, PlayedRun(tmp_path, "a").train(9), PlayedRun(tmp_path, "b", **keys).train(9))
    assert code == 1
    assert f"step {first} is the first whose samples differ:" in lines
    assert f"  {reason}" in lines


def test_a_rewind_makes_the_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = PlayedRun(tmp_path, "a").train(12), PlayedRun(tmp_path, "b").train(8).rewind(5).train(12)
    code, lines = audit(capsys, one, other)
    assert code == 1
    assert lines[-4:] == [
        "both runs wrote down the same hash behind step 5: up to it they read the same",
        "step 6 is the first whose samples differ:",
        "  the step begins at token 320 of the stream and at 512",
        f"  {other.run} left out 192 tokens behind step 5, to which it went back",
    ]


def test_two_runs_are_compared_without_their_tokens_as_far_as_their_hashes_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = PlayedRun(tmp_path, "a").train(9), PlayedRun(tmp_path, "b").train(9)
    seeded = PlayedRun(tmp_path, "c", train__seed=5).train(9)
    shutil.rmtree(one.cache)
    with pytest.raises(DataError):
        audit(capsys, one, other)
    assert (
        capsys.readouterr().out.splitlines()[-1] == "the runs read the same samples in all 8 steps that both have done"
    )
    with pytest.raises(DataError):
        audit(capsys, one, seeded)
    told = capsys.readouterr().out
    assert "the first step whose samples differ is one of 1 to 2; which one cannot be said without the tokens" in told
    assert "  train.seed is 1234 and 5\n" in told


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_picture_is_drawn(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    one, other = PlayedRun(tmp_path, "a").train(12), PlayedRun(tmp_path, "b").train(8).rewind(5).train(12)
    path = tmp_path / f"audit.{suffix}"
    audit(capsys, one, other, picture=str(path))
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    if suffix == "svg":
        assert b"tokens read by a and b" in content
    with pytest.raises(ConfigError, match=r"--picture must end in \.svg or \.png"):
        audit(capsys, one, picture=str(tmp_path / "audit.txt"))
