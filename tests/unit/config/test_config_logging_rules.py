# ruff: noqa: E501 - messages are shown whole
from __future__ import annotations

import pytest

from trainer.config.keys import build
from trainer.config.validate import problems

BASE: dict[str, object] = {"batch.global_batch_size": 8, "train.eval_every": 10}
TEXTS: dict[str, object] = {"eval.samples": 2}
TASKS: dict[str, object] = {"eval.tasks": ["quiz"]}

GOOD: list[dict[str, object]] = [
    {},
    TEXTS,
    {**TEXTS, "eval.samples": 1, "eval.temperature": 0.0, "eval.prompts": ["", "def "], "eval.max_tokens": 127},
    {"logging.wandb": "disabled", "logging.csv": True, "logging.tensorboard": True, "logging.console": "quiet"},
    {"logging.wandb_group": "g", "logging.wandb_artifacts": True, "logging.stall_alert_s": 0},
    {**TEXTS, "data.source": "megatron", "data.files": ["a"], "model.vocab_size": 300, "tokenizer.kind": "pretrained", "tokenizer.path": "t"},
    {**TASKS, "eval.tasks_every": 20, "eval.tasks_num_fewshot": 0, "eval.tasks_limit": 5, "eval.tasks_batch_size": 1, "eval.tasks_include_path": "t"},
]  # fmt: skip

BAD: list[tuple[dict[str, object], list[str]]] = [
    (
        {"logging.wandb": "disabled", "logging.wandb_group": "g", "logging.wandb_artifacts": True, "logging.stall_alert_s": 5},
        [
            "logging.wandb_group has no effect with logging.wandb=disabled; leave it out, or use logging.wandb=auto",
            "logging.wandb_artifacts has no effect with logging.wandb=disabled; leave it out, or use logging.wandb=auto",
            "logging.stall_alert_s has no effect with logging.wandb=disabled; leave it out, or use logging.wandb=auto",
        ],
    ),
    (
        {"logging.wandb_artifacts": True, "checkpoint.save_final": False},
        ["logging.wandb_artifacts=true needs checkpoints, but none are saved; use checkpoint.save_final=true or checkpoint.every > 0"],
    ),
    (
        {"eval.max_tokens": 5, "eval.prompts": ["a"]},
        [
            "eval.prompts has no effect with eval.samples=0; use for example eval.samples=2, or leave it out",
            "eval.max_tokens has no effect with eval.samples=0; use for example eval.samples=2, or leave it out",
        ],
    ),
    ({"eval.temperature": -1.0}, ["eval.temperature must be at least 0, but is -1.0"]),
    (
        {**TEXTS, "train.eval_every": 0},
        ["eval.samples needs evaluations, but train.eval_every is 0; use for example train.eval_every=100"],
    ),
    (
        {**TEXTS, "eval.prompts": []},
        ["eval.prompts must hold a prompt, but is empty; use eval.prompts=[''] to begin a document"],
    ),
    (
        {**TEXTS, "eval.temperature": 0.0},
        ["eval.samples (2) must be 1 with eval.temperature=0: greedy texts are all the same"],
    ),
    ({**TEXTS, "eval.max_tokens": 128}, ["eval.max_tokens (128) must be less than model.seq_length (128)"]),
    (
        {**TEXTS, "data.source": "synthetic", "model.vocab_size": 300},
        ["eval.samples has no effect with data.source=synthetic, which has no text; leave it out"],
    ),
    (
        {**TEXTS, "data.source": "megatron", "data.files": ["a"], "model.vocab_size": 300},
        ["eval.samples needs the tokenizer that made the ids of data.source=megatron; use tokenizer=pretrained with its tokenizer.path"],
    ),
    (
        {**TEXTS, "zero.stage": 3, "zero.offload": "nvme", "zero.nvme_path": "/d", "checkpoint.save_final": False},
        ["eval.samples needs weights in memory, but zero.offload=nvme; use zero.offload=cpu, or eval.samples=0"],
    ),
    (
        {"eval.tasks_every": 10, "eval.tasks_limit": 5},
        [
            "eval.tasks_every has no effect without eval.tasks; name a task, or leave it out",
            "eval.tasks_limit has no effect without eval.tasks; name a task, or leave it out",
        ],
    ),
    (
        {**TASKS, "train.eval_every": 0},
        ["eval.tasks needs evaluations, but train.eval_every is 0; use for example train.eval_every=100"],
    ),
    (
        {**TASKS, "eval.tasks_every": 15},
        ["eval.tasks_every (15) must be a multiple of train.eval_every (10); use 10 or 20"],
    ),
    ({"eval.tasks": ["quiz", " "]}, ["eval.tasks must hold names of tasks, but one of them is empty"]),
    ({**TASKS, "eval.tasks_limit": 0}, ["eval.tasks_limit must be at least 1, but is 0"]),
    (
        {**TASKS, "data.source": "synthetic", "model.vocab_size": 300},
        ["eval.tasks has no effect with data.source=synthetic, which has no text; leave it out"],
    ),
    (
        {**TASKS, "data.source": "megatron", "data.files": ["a"], "model.vocab_size": 300},
        ["eval.tasks needs the tokenizer that made the ids of data.source=megatron; use tokenizer=pretrained with its tokenizer.path"],
    ),
    (
        {**TASKS, "zero.stage": 3, "zero.offload": "nvme", "zero.nvme_path": "/d", "checkpoint.save_final": False},
        ["eval.tasks needs weights in memory, but zero.offload=nvme; use zero.offload=cpu, or leave eval.tasks out"],
    ),
]  # fmt: skip


@pytest.mark.parametrize("changes", GOOD)
def test_good_config(changes: dict[str, object]) -> None:
    assert problems(build({**BASE, **changes})) == []


@pytest.mark.parametrize(("changes", "messages"), BAD)
def test_bad_config(changes: dict[str, object], messages: list[str]) -> None:
    assert problems(build({**BASE, **changes})) == messages
