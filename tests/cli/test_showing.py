"""What is printed instead of done: the config, where it is from, a dry run, and what a key is."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Run, contents
from tests.cli.test_without_torch import BLOCKED, run
from trainer.config.compose import compose, from_yaml, to_yaml
from trainer.config.keys import GROUPS, KEYS

SYNTHETIC = ("data=synthetic", "model.vocab_size=64", "runtime.device=cpu")


def test_the_config_of_a_run(trident: Run) -> None:
    answer = trident("train", "--cfg", "job", "experiment=overfit", "train.steps=7")
    assert (answer.code, answer.err) == (0, "")
    tree = yaml.safe_load(answer.out)
    assert set(tree) == {*GROUPS, "name", "run_dir"}
    assert (tree["train"]["steps"], tree["run_dir"]) == (7, "runs/${name}")
    resolved = trident("train", "--cfg=job", "--resolve", "experiment=overfit", "train.steps=7")
    assert from_yaml(resolved.out) == compose(["experiment=overfit", "train.steps=7"])


def test_what_is_printed_can_be_trained_from(trident: Run, place: Path) -> None:
    (place / "old.yaml").write_text(trident("train", "-c", "job", "experiment=demo", "eval.prompts=['\\${x}']").out)
    assert compose(["config=old.yaml"]) == compose(["experiment=demo", "eval.prompts=['\\${x}']"])


def test_a_part_of_it(trident: Run) -> None:
    assert trident("train", "--cfg", "job", "-p", "model.num_layers").out == "4\n"
    assert yaml.safe_load(trident("train", "--cfg", "job", "--package=zero").out)["stage"] == 1
    assert trident("train", "--cfg", "plan", "-p", "layout.world_size", "layout=pp2", *SYNTHETIC).out == "2\n"


def test_plan_and_deepspeed(trident: Run) -> None:
    plan = json.loads(trident("train", "--cfg", "plan", "layout=pp2", *SYNTHETIC).out)
    given = json.loads(trident("train", "--cfg", "deepspeed", "layout=pp2", *SYNTHETIC).out)
    assert plan["layout"]["pipeline_parallel_size"] == 2
    assert plan["deepspeed"] == given
    assert given["train_batch_size"] == compose([]).batch.global_batch_size


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--cfg", "jib"], "--cfg must be one of job, plan, deepspeed, but is 'jib'"),
        (["--cfg", "job", "train.stesp=1"], "there is no key 'train.stesp'; did you mean 'train.steps'?"),
        (["--cfg", "plan", "model.num_layers=1", "layout=pp2"], "model.num_layers (1) must be at least"),
        (["--cfg", "job", "-p", "modle"], "there is no key 'modle'; did you mean 'model'?"),
        (["--cfg", "plan", "-p", "layuot"], "--package must name a part of what is printed, but there is no 'layuot'"),
        (["--cfg", "plan", "--resolve"], "--resolve belongs to --cfg job"),
        (["--resolve"], "--resolve needs --cfg"),
        (["--cfg", "job", "--info", "config"], "--cfg and --info each print something instead of running"),
        (
            ["--cfg", "plan", "tokenizer=pretrained", "tokenizer.path=owner/name"],
            "the plan needs the number of token ids, but tokenizer.path=owner/name is fetched when the data are",
        ),
    ],
)
def test_refused(words: list[str], part: str, refused: Run) -> None:
    answer = refused("train", *words)
    assert answer.problems[0].startswith(part)
    assert answer.out == ""


def test_a_config_that_breaks_a_rule_is_shown_and_refused(trident: Run) -> None:
    answer = trident("train", "--cfg", "job", "model.num_layers=1", "layout=pp2")
    assert answer.code == 2
    assert yaml.safe_load(answer.out)["model"]["num_layers"] == 1
    assert answer.problems[0].startswith("model.num_layers (1) must be at least")


def test_where_a_config_is_from(trident: Run, place: Path) -> None:
    (place / "conf" / "experiment").mkdir(parents=True)
    (place / "conf" / "experiment" / "mine.yaml").write_text("defaults: [override /model: llama_debug]\n")
    (place / "old.yaml").write_text("name: old\n")
    config = trident("train", "--info", "config", "experiment=mine", "config=old.yaml").out.splitlines()
    assert "config      old.yaml" in config
    assert config[-1].split() == ["experiment", "mine", "conf/experiment/mine.yaml"]
    order = trident("train", "--info", "defaults", "experiment=mine").out.splitlines()
    assert (order[0], order[-1]) == ("trident_schema", "experiment/mine")
    assert "model/llama_debug" in order
    searched = trident("train", "--info", "searchpath", "-cd", str(place)).out.splitlines()
    assert [line.split()[0] for line in searched] == ["--config-dir", "conf", "trident"]
    assert " mine* " in trident("train", "--info", "groups").out


def test_a_dry_run_writes_and_starts_nothing(trident: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.supervise.run_ranks", None)
    before = contents(place)
    answer = trident("train", "--dry-run", "layout=pp2", *SYNTHETIC, "run_dir=it's")
    assert (answer.code, answer.err) == (0, "")
    assert contents(place) == before
    assert "stage 1 on pipeline rank 1" in answer.out
    assert "not prepared yet" in answer.out
    last = answer.out.splitlines()[-1]
    assert last.startswith("start   ")
    assert "--master_port=FREE_PORT --no_local_rank --module trainer train layout=pp2" in last
    assert trident("train", "--dry-run", *SYNTHETIC).out.splitlines()[-1] == "start   one rank, in this process"


@pytest.mark.parametrize(
    ("words", "part", "code"),
    [
        (["run_dir=/dev/null/x"], "run_dir must be a folder", 2),
        (["data=files", "data.files=[none.txt]"], "data.files must name files that exist", 2),
        (["checkpoint.resume=none"], "checkpoint.resume must be", 4),
        (["model.num_layers=1", "layout=pp2"], "model.num_layers (1) must be at least", 2),
    ],
)
def test_a_dry_run_refuses_what_a_run_would(words: list[str], part: str, code: int, refused: Run) -> None:
    assert part in refused("train", "--dry-run", *words, code=code).problems[0]


def test_a_dry_run_knows_data_that_are_prepared(trident: Run, place: Path) -> None:
    (place / "a.txt").write_text("text " * 100)
    words = ("data=files", "data.files=[a.txt]", "data.validation_fraction=0", "tokenizer=bytes")
    assert trident("data", *words).code == 0
    assert (
        "data    501 tokens to train on, 0 held out"
        in trident("train", "--dry-run", *words, "model.seq_length=8", "batch.global_batch_size=2").out
    )
    assert "must hold at least one global batch" in trident("train", "--dry-run", *words).problems[0]


def test_a_key_explained(trident: Run) -> None:
    for words in (["train", "--help", "schedule.warmup_steps"], ["--help", "schedule.warmup_steps"],
                  ["data", "-h", "--schedule.warmup-steps=3"], ["train", "--help=schedule.warmup_steps"]):  # fmt: skip
        answer = trident(*words)
        assert (answer.code, answer.err) == (0, "")
        assert answer.out.startswith("schedule.warmup_steps\n")
        for part in (
            "integer >= 0",
            "not in a run that has begun",
            "The warm-up ends before the run does.",
            "schedule.kind",
        ):
            assert part in answer.out, part


@pytest.mark.parametrize("key", KEYS)
def test_every_key_can_be_explained(key: str) -> None:
    from trainer.verbs.topics import topic

    assert topic(key).startswith(f"{key}\n")


def test_a_group_and_a_file_explained(trident: Run, place: Path) -> None:
    (place / "conf" / "layout").mkdir(parents=True)
    (place / "conf" / "layout" / "ours.yaml").write_text("# Four of a kind.\ntensor_parallel_size: 4\n")
    text = trident("train", "--help", "layout").out
    assert "how ranks share the model." in text
    assert "N replicas" in text
    assert "Four of a kind." in text
    assert "layout.tensor_parallel_size" in text
    assert "4 tensor-parallel ranks" in trident("train", "--help", "layout=pp2_tp4").out
    assert "tensor_parallel_size: 4" in trident("train", "--help", "layout=ours").out
    assert "experiment=demo" in trident("train", "--help", "experiment").out


@pytest.mark.parametrize("word", ["optimizer.lrr", "layuot", "layout=tp2x2", "lr.nope"])
def test_what_cannot_be_explained(word: str, refused: Run) -> None:
    assert "there is no " in refused("train", "--help", word).problems[0]


def test_the_config_is_printed_in_under_a_second_and_without_torch(tmp_path: Path) -> None:
    took = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run(tmp_path, "-c", BLOCKED, "train", "--cfg", "job", "experiment=demo")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("model:\n")
    # Of the processor's time, and the best of three: other tests run beside this one.
    assert min(took) < 1


@pytest.mark.parametrize("words", [["--cfg", "plan"], ["--info", "groups"], ["--dry-run"], ["--help", "optimizer.lr"]])
def test_nothing_that_is_printed_needs_torch(words: list[str], tmp_path: Path) -> None:
    done = run(tmp_path, "-c", BLOCKED, "train", *words, *([] if "--help" in words else SYNTHETIC))
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_the_yaml_is_what_is_written_into_a_run(trident: Run) -> None:
    assert trident("train", "--cfg", "job", "--resolve").out == to_yaml(compose([]))


@pytest.mark.parametrize("key", ["data.files", "tokenizer.path"])
def test_where_data_lie_may_change_and_not_what_they_are(key: str, trident: Run) -> None:
    text = " ".join(trident("train", "--help", key).out.split())
    assert "may change in the place only: the same run goes on if its tokens lie elsewhere" in text
    assert "at any time" not in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["generate", "--help", "top_k"], "top_k"),
        (["generate", "-h", "--top-k=3", "prompt"], "prompt"),
        (["checkpoint", "--help", "verify"], "verify"),
    ],
)
def test_a_word_of_a_verb_explained(words: list[str], told: str, trident: Run) -> None:
    answer = trident(*words)
    assert (answer.code, answer.err) == (0, "")
    assert any(line.lstrip().startswith(f"{told} ") or line.strip() == told for line in answer.out.splitlines()[-4:])
    assert "usage" not in answer.out


@pytest.mark.parametrize("words", [["generate", "--help", "nosuch"], ["checkpoint", "--help=nosuch"]])
def test_a_word_that_a_verb_does_not_have(words: list[str], refused: Run) -> None:
    answer = refused(*words)
    assert answer.problems == [f"`trident {words[0]}` has no 'nosuch'"]
    assert answer.hints == [f"see `trident {words[0]} --help`"]
    assert refused("generate", "--help", "top_kk").problems[0].endswith("did you mean 'top_k'?")
