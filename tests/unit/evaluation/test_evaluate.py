"""Scores of documents beside the oracle, and of tasks beside the harness's own model of transformers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from tests.helpers.generation import model_of, weights_of, write_run
from tests.helpers.held_out import is_held_out
from tests.helpers.tasks import NAMES, PROSE, QUIZ, write_tasks
from tests.helpers.tiny_models import TINY_LLAMA
from trainer.cli import main
from trainer.config.schema import LoggingConfig, WandbMode
from trainer.data.end_of_text import END_OF_TEXT
from trainer.data.split import TEST_PART, Fractions
from trainer.data.tokenizer import ByteTokenizer, FileTokenizer, train_bpe
from trainer.evaluation.asked import settle
from trainer.evaluation.documents import read_documents
from trainer.evaluation.evaluate_options import EvaluateOptions
from trainer.exporting import export_verb
from trainer.loop.events import StepReport
from trainer.metrics.sink import Row, Sink
from trainer.metrics.wandb_mode import WandbChoice
from trainer.oracle.reference import reference_logits

LENGTH = 48
TEXTS = [
    "def read(self):\n",
    "x",
    "A document that is longer than the window of the model, for it has many words. " * 2,
]
TEXT = "The quick brown fox. import os, def read(self): a week has seven days; three and one are white snow. " * 3


@pytest.fixture(scope="module")
def tokenizer() -> FileTokenizer:
    """A tokenizer that puts a token before every text, as LLaMA's does, unless it is told not to."""
    trained = train_bpe([TEXT, *TEXTS], 300)
    inner = tokenizers.Tokenizer.from_str(trained._tokenizer.to_str())
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, trained.eos_id)]
    )
    return FileTokenizer(inner.to_str(), "a test", END_OF_TEXT)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tokenizer: FileTokenizer) -> Path:
    """A folder with a run, the folder that export makes of it, and tasks."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_run(folder / "run", model=TINY_LLAMA, tokenizer=tokenizer, seq_length=LENGTH)
    assert export_verb([str(folder / "run"), str(folder / "exported")], "fp32") == 0
    write_tasks(folder / "tasks")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, "  ", ""]))
    return folder


@pytest.fixture(scope="module")
def theirs(place: Path) -> dict[str, Any]:
    """Results of the harness's own model of transformers on the exported folder."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(place / "tasks"), include_defaults=False)
    arguments = {"pretrained": str(place / "exported"), "dtype": "float32"}
    found: dict[str, Any] = simple_evaluate(
        model="hf", model_args=arguments, tasks=list(NAMES), task_manager=manager, device="cpu", batch_size=3
    )
    return found


Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture
def evaluate(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """Return a function that runs the command in this process and returns what it wrote."""
    monkeypatch.setenv("TRIDENT_CACHE", str(tmp_path / "cache"))

    def run(source: str, *words: str) -> dict[str, Any]:
        output = tmp_path / "scores.json"
        assert main(["evaluate", str(place / source), f"output={output}", "runtime.device=cpu", *words]) == 0
        found: dict[str, Any] = json.loads(output.read_text())
        return found

    return run


def files(place: Path) -> tuple[str, ...]:
    return ("data.source=files", f"data.files=[{place / 'texts.jsonl'}]")


def expected_nats(tokenizer: FileTokenizer, text: str, stride: int = LENGTH) -> float:
    """Negative log-likelihood of a text, by the oracle, token by token from the definition of the window."""
    config = replace(TINY_LLAMA, seq_length=LENGTH)
    weights = weights_of(model_of(config, tokenizer.vocab_size))
    ids = [tokenizer.eos_id, *tokenizer.encode(text)]
    nats, place = 0.0, 1
    while place < len(ids):
        end = min(len(ids), place + (LENGTH if place == 1 else stride))
        start = max(0, end - 1 - LENGTH)
        logits = reference_logits(config, weights, torch.tensor([ids[start : end - 1]]))[0].double().log_softmax(-1)
        nats -= float(sum(logits[at - 1 - start, ids[at]] for at in range(place, end)))
        place = end
    return nats


@pytest.mark.parametrize("stride", [0, 5])
def test_the_loss_on_documents_is_the_oracles_each_document_by_itself(
    stride: int, place: Path, tokenizer: FileTokenizer, evaluate: Evaluate
) -> None:
    found = evaluate("run", *files(place), f"stride={stride}", "batch_size=2")["data"]
    tokens = sum(len(tokenizer.encode(text)) for text in TEXTS)
    assert len(tokenizer.encode(TEXTS[2])) > LENGTH + 5, "a document must be longer than the window"
    nats = sum(expected_nats(tokenizer, text, stride or LENGTH) for text in TEXTS)
    assert (found["documents"], found["tokens"]) == (3, tokens), "blank documents are left out"
    assert found["bytes"] == sum(len(text.encode()) for text in TEXTS)
    # fp32 against fp64 sums over some hundred tokens.
    assert found["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / found["bytes"], rel=1e-5)


def test_a_folder_of_transformers_scores_as_the_run_that_it_was_exported_from(place: Path, evaluate: Evaluate) -> None:
    ours, exported = (evaluate(source, *files(place))["data"] for source in ("run", "exported"))
    assert exported == ours


def test_generate_writes_with_a_folder_of_transformers_as_with_its_run(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """But for the tokens that a tokenizer of transformers puts before a prompt, which the run has not learned."""
    shutil.copytree(place / "exported", tmp_path / "exported")
    tokens = tmp_path / "exported" / "tokenizer.json"
    tokens.write_text(json.dumps({**json.loads(tokens.read_text()), "post_processor": None}))
    texts = []
    for source in (place / "run", tmp_path / "exported"):
        assert main(["generate", str(source), "prompt=def ", "temperature=0", "runtime.device=cpu"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert len(texts[0]) > 20


def test_parts_are_those_of_training(place: Path, tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(8)]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    held_out = [is_held_out(text, 0.5) for text in texts]
    assert 0 < sum(held_out) < 8
    settings = ("data.source=files", f"data.files=[{tmp_path / 'many.jsonl'}]", "data.validation_fraction=0.5")
    for part, wanted in (("validation", held_out), ("train", [not one for one in held_out]), ("all", [True] * 8)):
        (data,) = settle(EvaluateOptions(str(place / "run"), part=part, settings=settings)).data
        found = [one.num_bytes for one in read_documents(data.config, data.tokenizer, data.part_number)]
        assert found == [len(text) for text, is_wanted in zip(texts, wanted, strict=True) if is_wanted]


def test_parts_where_validation_files_are_named(place: Path, tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(40)]
    for name, held in (("many", texts), ("held", ["held out by a file"])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in held))
    settings = (
        *("data.source=files", f"data.files=[{tmp_path / 'many.jsonl'}]", "data.test_fraction=0.5"),
        *(f"data.validation_files=[{tmp_path / 'held.jsonl'}]", "data.validation_fraction=0"),
    )
    tested = [Fractions(0.0, 0.5).part_of(text.encode()) == TEST_PART for text in texts]
    wanted = {
        "validation": ["held out by a file"],
        "test": [text for text, is_tested in zip(texts, tested, strict=True) if is_tested],
        "train": [text for text, is_tested in zip(texts, tested, strict=True) if not is_tested],
        "all": texts,
    }
    for part, expected in wanted.items():
        (data,) = settle(EvaluateOptions(str(place / "run"), part=part, settings=settings)).data
        found = [one.num_bytes for one in read_documents(data.config, data.tokenizer, data.part_number)]
        assert found == [len(text) for text in expected], part


def sampled(results: dict[str, Any], task: str) -> list[dict[str, Any]]:
    return sorted(results["samples"][task], key=lambda one: int(one["doc_id"]))


def test_scores_of_tasks_are_those_of_the_harness_with_transformers(
    place: Path, tokenizer: FileTokenizer, theirs: dict[str, Any], evaluate: Evaluate, tmp_path: Path
) -> None:
    from trainer.evaluation.harness import harness_tokenizer

    words = (f"include_path={place / 'tasks'}", f"tasks={','.join(NAMES)}", f"samples={tmp_path / 'samples.jsonl'}")
    ours = evaluate("run", *words)["tasks"]
    for task in ("quiz", "finish"):
        for key in ("acc,none", "acc_norm,none", "exact_match,none", "acc_stderr,none"):
            assert ours["results"][task].get(key) == theirs["results"][task].get(key), (task, key)
    for key in ("word_perplexity,none", "byte_perplexity,none", "bits_per_byte,none"):
        assert ours["results"]["prose"][key] == pytest.approx(theirs["results"]["prose"][key], rel=1e-5)
    samples: dict[str, list[dict[str, Any]]] = {}
    for line in (tmp_path / "samples.jsonl").read_text().splitlines():
        one = json.loads(line)
        samples.setdefault(one["task"], []).append(one)
    assert harness_tokenizer(place / "exported").encode("x")[0] == tokenizer.eos_id, "a token must stand before a text"
    assert {task: len(found) for task, found in samples.items()} == {
        "quiz": len(QUIZ),
        "finish": 3,
        "prose": len(PROSE),
    }
    for mine, other in zip(samples["quiz"], sampled(theirs, "quiz"), strict=True):
        for (first, greedy), (second, also) in zip(
            (one[0] for one in mine["resps"]), (one[0] for one in other["resps"]), strict=True
        ):
            # Some tokens, each rounded to fp32 in another order.
            assert float(first) == pytest.approx(float(second), abs=1e-4)
            assert str(greedy) == str(also)
    assert [one["resps"] for one in samples["finish"]] == [one["resps"] for one in sampled(theirs, "finish")]
    assert len({one["resps"][0][0] for one in samples["finish"]}) > 1
    for mine, other in zip(samples["prose"], sampled(theirs, "prose"), strict=True):
        assert float(mine["resps"][0][0]) == pytest.approx(float(other["resps"][0][0]), abs=1e-4)


def test_few_shot_limit_and_rows(place: Path, evaluate: Evaluate) -> None:
    words = (f"include_path={place / 'tasks'}", "tasks=quiz")
    plain, solved = evaluate("run", *words), evaluate("run", *words, "num_fewshot=1", "limit=2")
    assert plain["scores"] == {
        f"eval/quiz/{name}": plain["tasks"]["results"]["quiz"][f"{name},none"] for name in ("acc", "acc_norm")
    }
    assert solved["tasks"]["n-shot"] == {"quiz": 1}
    assert solved["tasks"]["n-samples"]["quiz"]["effective"] == 2
    assert "data" not in plain


def test_scores_go_to_tensorboard_and_wandb_when_asked(
    place: Path, evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    given: list[Any] = []

    class Recorded(Sink):
        def __init__(self, folder: Path, logging: LoggingConfig, choice: WandbChoice, *_: object) -> None:
            given.extend((folder, logging.wandb_job_type, choice.mode))

        def write(self, row: Row, report: StepReport) -> None:
            given.append(row)

    monkeypatch.setattr("trainer.metrics.scores.WandbSink", Recorded)
    found = evaluate("run", *files(place), "logging.tensorboard=true", "logging.wandb=offline")["scores"]
    folder = tmp_path / "scores"
    assert given == [folder, "evaluate", WandbMode.offline, {"step": 5, **found}]
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert {"eval/loss", "eval/bits_per_byte", "eval/perplexity"} == set(events.Tags()["scalars"]) == set(found)
    loss = events.Scalars("eval/loss")[0]
    assert (loss.step, loss.value) == (5, pytest.approx(found["eval/loss"]))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["tasks=no_such_quiz_at_all", "include_path={tasks}"],
            "tasks must name tasks that exist, but there is no 'no_such_quiz_at_all'",
        ),
        (["tasks=far", "include_path={tasks}"], "tasks=far must be loaded with their data, but: "),
        (
            ["tasks=empty", "include_path={tasks}"],
            "task empty: each answer must have text, but one of question 1 is empty",
        ),
        (["include_path={tasks}"], "include_path has no effect without tasks=...; leave it out"),
        (["tasks=quiz", "include_path={tasks}/none"], "include_path must be a folder with tasks"),
        (
            ["data.source=files", "data.files=[{tasks}/blank.txt]"],
            "must give at least one document with text to evaluate on, but gave none",
        ),
        (["stride=49", "data.source=stdlib"], "stride (49) must be at most the tokens that the model reads (48)"),
        (["tasks=quiz", "include_path={tasks}", "tokenizer=x"], "tokenizer has no effect on tasks"),
        (["layout=pp3"], "model.num_layers (2) must be at least"),
        (["logging.tensorboard=true"], "logging.tensorboard needs output=FILE.json"),
        (["tasks=quiz", "include_path={tasks}", "chat=true"], "chat=true needs a tokenizer with a chat template"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    words: list[str], line: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = place / "tasks"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    # The harness's own table takes seconds to read.
    monkeypatch.setattr("trainer.evaluation.task_names.WITH_DEFAULTS", False)
    if not (tasks / "far.yaml").exists():
        quiz = (tasks / "quiz.yaml").read_text()
        (tasks / "far.yaml").write_text(
            quiz.replace("quiz", "far").replace("dataset_path: json", "dataset_path: nobody/far")
        )
        answers = ({**QUIZ[0], "choices": [word, "x"]} for word in ("y", ""))
        (tasks / "empty.jsonl").write_text("".join(json.dumps(one) + "\n" for one in answers))
        (tasks / "empty.yaml").write_text(quiz.replace("quiz", "empty") + 'target_delimiter: ""\n')
        (tasks / "blank.txt").write_text(" \n")
    here = [word.format(tasks=tasks) for word in words]
    assert main(["evaluate", str(place / "run"), "runtime.device=cpu", *here]) == 2
    said = capsys.readouterr().err
    assert len([one for one in said.splitlines() if one.startswith("error: ")]) == 1, said
    assert line in said
    assert "Traceback" not in said


def test_without_the_harness_the_extra_is_named(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["evaluate", str(place / "run"), "tasks=quiz"]) == 2
    said = capsys.readouterr().err
    assert "error: tasks needs the package lm-eval, but it is not installed\n" in said
    assert "pip install 'trident-trainer[eval]'" in said


def test_a_model_of_bytes_runs_tasks_too(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", model=TINY_LLAMA, tokenizer=ByteTokenizer(), seq_length=LENGTH)
    words = [f"include_path={place / 'tasks'}", "tasks=quiz", "runtime.device=cpu"]
    assert main(["evaluate", str(tmp_path / "run"), *words]) == 0
    assert "quiz  0         acc" in capsys.readouterr().out
