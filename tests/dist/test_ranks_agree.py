"""Ranks that were started apart train the same run, or do not begin: within seconds, told once, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.helpers.apart import Ended, Rank, start_apart
from tests.helpers.command import rows
from trainer.config.schema import TridentConfig
from trainer.run_folder import RunFolder

pytestmark = [pytest.mark.dist, pytest.mark.timeout(240)]

SMALL = (
    *("model=gpt_debug", "model.seq_length=32", "model.hidden_size=32", "model.num_layers=2"),
    *("model.num_attention_heads=4", "batch.global_batch_size=4", "train.steps=2", "logging=local", "layout=dp2"),
    *("logging.console=plain", "runtime.device=cpu", "runtime.threads_per_rank=1"),
)
MADE_UP = ("data=synthetic", "model.vocab_size=64")
SOON_S = 20.0


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIDENT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def apart(tmp_path: Path, *words: Sequence[str], shared: Sequence[str] = (*SMALL, *MADE_UP)) -> Ended:
    """Start a rank with each of the words, after those that all of them have."""
    ranks = [Rank(words=(*shared, f"run_dir={tmp_path / 'R'}", *own)) for own in words]
    return start_apart(ranks, tmp_path / "notes")


def refused(ended: Ended, tmp_path: Path) -> str:
    """The one error of a run that did not begin, soon, on any rank, and left nothing."""
    assert ended.codes == [2] * len(ended.codes), ended.said
    assert len(ended.errors) == 1, ended.said
    assert "error: " in ended.said[0]
    assert "Traceback" not in "".join(ended.said)
    assert ended.seconds < SOON_S
    assert not (tmp_path / "R").exists()
    return ended.errors[0]


@pytest.mark.parametrize(
    ("key", "first", "other"),
    [
        ("optimizer.lr", "0.001", "1e-05"),
        # Without the comparison these hang, for another reason each.
        ("model.num_layers", "2", "3"),
        ("train.steps", "2", "5"),
        ("runtime.timeout_s", "60", "1800"),
        ("layout.sequence_parallel", "false", "true"),
    ],
)
def test_ranks_that_differ_do_not_begin(key: str, first: str, other: str, tmp_path: Path, cache: None) -> None:
    own = ("layout=tp2",) if key.startswith("layout") else ()
    ended = apart(tmp_path, (*own, f"{key}={first}"), (*own, f"{key}={other}"))
    told = refused(ended, tmp_path)
    assert told.startswith(f"{key} must be the same on every rank, but is {first} on rank 0 (")
    assert f") and {other} on rank 1 (" in told


def test_a_wrong_word_on_one_node_ends_all(tmp_path: Path, cache: None) -> None:
    told = refused(apart(tmp_path, (), ("trian.steps=3",)), tmp_path)
    assert told.startswith("rank 1 (")
    assert told.endswith(": there is no key 'trian.steps'; did you mean 'train.steps'?")
    told = refused(apart(tmp_path / "again", ("trian.steps=3",), ()), tmp_path)
    assert told.startswith("there is no key 'trian.steps'")


def test_a_wrong_word_on_all_nodes_is_told_once(tmp_path: Path, cache: None) -> None:
    assert refused(apart(tmp_path, *[("trian.steps=3",)] * 3), tmp_path).startswith("there is no key")


def test_other_software_on_a_node(tmp_path: Path, cache: None) -> None:
    words = (*SMALL, *MADE_UP, f"run_dir={tmp_path / 'R'}")
    older = patch("trainer.preflight.rank_versions", lambda: {"the version of deepspeed": "0.1"})
    newer = patch("trainer.preflight.rank_versions", lambda: {"the version of deepspeed": "0.2"})
    ranks = [Rank(words, before=newer.start), Rank(words, before=older.start)]
    told = refused(start_apart(ranks, tmp_path / "notes"), tmp_path)
    assert told.startswith("the version of deepspeed must be the same on every rank, but is 0.2 on rank 0 (")


def test_a_variable_that_would_make_ranks_hang(tmp_path: Path, cache: None) -> None:
    words = (*SMALL, *MADE_UP, f"run_dir={tmp_path / 'R'}")
    ranks = [Rank(words), Rank(words, environ={"TORCH_DISTRIBUTED_DEBUG": "DETAIL"})]
    told = refused(start_apart(ranks, tmp_path / "notes"), tmp_path)
    assert told.startswith("the environment variable TORCH_DISTRIBUTED_DEBUG must be the same on every rank")


def test_one_folder_where_each_rank_has_another_time_and_place(tmp_path: Path, cache: None) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    words = (*SMALL, *MADE_UP, "run_dir=${name}_${now:%S.%f}", "name=${oc.env:WHO}", "optimizer.lr=${oc.env:RATE}")
    ranks = [
        Rank(words, {"WHO": name, "RATE": rate}, tmp_path / name) for name, rate in (("a", "0.001"), ("b", "0.002"))
    ]
    ended = start_apart(ranks, tmp_path / "notes")
    assert ended.codes == [0, 0], ended.said
    (folder,) = (tmp_path / "a").iterdir()
    assert list((tmp_path / "b").iterdir()) == []
    assert (folder / "checkpoints" / "step_2").is_dir()
    assert (folder / "logs" / "rank_1.log").is_file()
    assert rows(folder)[-1]["train/learning_rate"] < 0.001
    assert f"run_dir is rank 0's, {folder}: rank 1 (" in ended.said[0]
    assert "optimizer.lr is rank 0's, 0.001: rank 1 (" in ended.said[0]
    assert "would have taken" not in ended.said[1]


def test_what_nodes_may_have_of_their_own_does_not_matter(tmp_path: Path, cache: None) -> None:
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers

    texts = [f"document {index} says {index * index}" for index in range(400)]
    text = Tokenizer(models.WordLevel({"[UNK]": 0, "<|endoftext|>": 1, "says": 2, "document": 3}, unk_token="[UNK]"))
    text.pre_tokenizer = pre_tokenizers.Whitespace()
    nodes = [tmp_path / "a", tmp_path / "b"]
    for node in nodes:
        node.mkdir()
        (node / "docs.txt").write_text("\n".join(texts))
        text.save(str(node / "tokenizer.json"))
        Dataset.from_dict({"text": texts}).save_to_disk(str(node / "hub"))

    def trained(name: str, source: str, second: Path, threads: int) -> list[dict[str, float]]:
        own = [
            (
                *(
                    "tokenizer=pretrained",
                    f"tokenizer.path={node / 'tokenizer.json'}",
                    f"data.cache_dir={node / 'cache'}",
                ),
                f"data.files=[{node / 'docs.txt'}]" if source == "files" else f"data.hub_path={node / 'hub'}",
                *(f"data={source}", f"runtime.threads_per_rank={count}"),
            )
            for node, count in ((nodes[0], 1), (second, threads))
        ]
        ended = apart(tmp_path / name, *own, shared=SMALL)
        assert ended.codes == [0, 0], ended.said
        return rows(tmp_path / name / "R")

    alike = {source: trained(f"{source}_alike", source, nodes[0], 1) for source in ("files", "hub")}
    for source in ("files", "hub"):
        shutil.rmtree(nodes[1] / "cache", ignore_errors=True)
        found = trained(f"{source}_apart", source, nodes[1], 2)
        assert (nodes[1] / "cache").is_dir()
        # Products of matrices may be summed in another order by two threads.
        for row, other in zip(alike[source], found, strict=True):
            for name in ("train/loss", "train/grad_norm"):
                assert other[name] == pytest.approx(row[name], rel=1e-6)
            assert other["data/sample_ledger"] == row["data/sample_ledger"]


def test_other_tokens_or_another_vocabulary_on_a_node(tmp_path: Path, cache: None) -> None:
    (tmp_path / "a.txt").write_text("one two three\n" * 400)
    (tmp_path / "b.txt").write_text("one two four\n" * 400)
    own = [("data=files", "tokenizer=bytes", f"data.files=[{tmp_path / name}]") for name in ("a.txt", "b.txt")]
    ended = apart(tmp_path, *own, shared=SMALL)
    assert ended.codes == [2, 2], ended.said
    assert ended.seconds < SOON_S
    (told,) = ended.errors
    assert told.startswith("every node must train on the same tokens, but ")


def test_a_file_that_only_one_node_lacks_is_told_with_its_name(tmp_path: Path, cache: None) -> None:
    (tmp_path / "a.txt").write_text("one two three\n" * 400)
    own = [("data=files", "tokenizer=bytes", f"data.files=[{tmp_path / name}]") for name in ("a.txt", "b.txt")]
    ended = apart(tmp_path, *own, shared=SMALL)
    assert ended.codes == [2, 2], ended.said
    (told,) = ended.errors
    assert told.startswith("rank 1 (")
    assert "b.txt" in told


def test_a_rank_that_comes_late_is_waited_for(tmp_path: Path, cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.engine.rendezvous.FIRST_WORD_S", 1.0)
    words = (*SMALL, *MADE_UP, f"run_dir={tmp_path / 'R'}")
    ended = start_apart([Rank(words), Rank(words, after_s=4.0)], tmp_path / "notes")
    assert ended.codes == [0, 0], ended.said
    assert "rank 0 waits for rank 1 of 2 to join, since" in ended.said[0]
    assert json.loads((tmp_path / "R" / "summary.json").read_text())["status"] == "finished"


def _elsewhere(config: TridentConfig) -> RunFolder:
    return RunFolder(Path(f"{config.run_dir}_of_this_node"))


def test_a_folder_that_another_node_does_not_see_is_told_before_training(
    tmp_path: Path, cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.run_folder.SHARED_S", 0.5)
    words = (*SMALL, *MADE_UP, f"run_dir={tmp_path / 'R'}")
    ranks = [Rank(words), Rank(words, before=patch("trainer.app.RunFolder.of", _elsewhere).start)]
    ended = start_apart(ranks, tmp_path / "notes")
    assert ended.codes == [2, 2], ended.said
    (told,) = ended.errors
    assert told.startswith("rank 1 (")
    assert "): run_dir must be on a file system that all nodes share, but " in told
    assert not (tmp_path / "R" / "metrics.jsonl").exists()
