from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.helpers.generation import model_of, weights_of
from tests.helpers.tiny_models import TINY_LLAMA
from trainer.config.plan import make_plan
from trainer.config.schema import EvalConfig, TridentConfig
from trainer.data.tokenizer import ByteTokenizer
from trainer.engine.face import Engine
from trainer.errors import ConfigError
from trainer.evaluation.tasks_hook import TasksHook
from trainer.loop.session import Session
from trainer.samples.weights import WeightGatherer
from trainer.topology.groups import single_process_groups

RESULTS = {"results": {"quiz": {"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": "quiz"}}}


def test_scores_are_noted_at_their_turn_and_a_failure_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ByteTokenizer().save(tmp_path)
    config = replace(TridentConfig(), model=TINY_LLAMA, eval=EvalConfig(tasks=("quiz",), tasks_every=4))
    plan = make_plan(config, ByteTokenizer.vocab_size)
    session = Session(plan=plan, groups=single_process_groups(), hosts=["here"])
    weights = weights_of(model_of(TINY_LLAMA, ByteTokenizer.vocab_size))
    monkeypatch.setattr(WeightGatherer, "gather", lambda _: weights)
    answers: list[Any] = [RESULTS, ConfigError("no such column\nat all")]

    def run_tasks(*_: object) -> dict[str, Any]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return cast(dict[str, Any], answer)

    monkeypatch.setattr("trainer.evaluation.harness.run_tasks", run_tasks)
    hook = TasksHook(session, cast(Engine, None), tmp_path, tmp_path / "none")
    monkeypatch.setattr(hook, "_tasks", (None, {}))
    hook.on_evaluate(2)
    assert (session.measures.take(), len(answers)) == ({}, 2)
    hook.on_evaluate(4)
    assert session.measures.take() == {"eval/quiz/acc": 0.5}
    assert "tasks   step 4: quiz/acc 0.5000\n" in capsys.readouterr().out
    hook.on_evaluate(8)
    assert (session.measures.take(), answers) == ({}, [])
    assert "warning: step 8 has no scores of tasks: no such column\n" in capsys.readouterr().err
