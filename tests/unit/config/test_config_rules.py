# ruff: noqa: E501 - messages are compared whole
"""Every rule has a config that breaks only it, and the exact text that the user reads."""

from __future__ import annotations

import pytest

from trainer.config.keys import build
from trainer.config.rules_ranges import MINIMA
from trainer.config.validate import problems

BASE: dict[str, object] = {
    "model.hidden_size": 48,
    "model.num_layers": 4,
    "model.num_attention_heads": 12,
    "batch.global_batch_size": 16,
    "name": "x",
    "run_dir": "runs/x",
}
"""A config that can run; each case below changes a few keys of it."""


Case = tuple[dict[str, object], list[str]]

MODEL: list[Case] = [
    (
        {"layout.tensor_parallel_size": 8},
        ["model.num_attention_heads (12) must be divisible by layout.tensor_parallel_size (8); use 1, 2, 3, 4, 6 or 12"],
    ),
    (
        {"model.hidden_size": 50},
        ["model.hidden_size (50) must be divisible by model.num_attention_heads (12); use 48 or 60, or set model.head_dim"],
    ),
    (
        {"model.num_key_value_heads": 5},
        ["model.num_attention_heads (12) must be divisible by model.num_key_value_heads (5); use 1, 2, 3, 4, 6 or 12"],
    ),
    (
        {"model.hidden_size": 48, "model.num_attention_heads": 12, "model.num_key_value_heads": 3, "layout.tensor_parallel_size": 4},
        ["model.num_key_value_heads (3) must be divisible by layout.tensor_parallel_size (4), or divide it; use 1, 3, 6 or 12"],
    ),
    (
        {"model.num_key_value_heads": 2, "layout.tensor_parallel_size": 4},
        [],
    ),
    (
        {"model.ffn_hidden_size": 102, "layout.tensor_parallel_size": 4},
        ["model.ffn_hidden_size (102) must be divisible by layout.tensor_parallel_size (4); use 1, 2, 3 or 6"],
    ),
    (
        {"model.hidden_size": 10, "model.head_dim": 4, "layout.tensor_parallel_size": 3},
        ["4 x model.hidden_size (40) must be divisible by layout.tensor_parallel_size (3); use 1, 2 or 4"],
    ),
    (
        {"model.seq_length": 126, "layout.tensor_parallel_size": 4, "layout.sequence_parallel": True},
        ["model.seq_length (126) must be divisible by layout.tensor_parallel_size (4); use 1, 2, 3 or 6"],
    ),
    (
        {"layout.sequence_parallel": True},
        ["layout.sequence_parallel=true has no effect with layout.tensor_parallel_size=1; use layout.tensor_parallel_size >= 2, or layout.sequence_parallel=false"],
    ),
    (
        {"model.position": "rope", "model.hidden_size": 36},
        ["model.head_dim (3 = model.hidden_size / model.num_attention_heads) must be even for model.position=rope, or set model.rope_dims"],
    ),
    (
        {"model.position": "rope", "model.head_dim": 5},
        ["model.head_dim (5) must be even for model.position=rope, or set model.rope_dims"],
    ),
]  # fmt: skip

LAYOUT: list[Case] = [
    (
        {"layout.pipeline_parallel_size": 8},
        ["model.num_layers (4) must be at least layout.pipeline_parallel_size (8); use layout.pipeline_parallel_size <= 4"],
    ),
    (
        {"layout.pipeline_parallel_size": 3, "layout.pipeline_schedule": "dualpipev"},
        ["model.num_layers (4) must be at least 2 x layout.pipeline_parallel_size (6) for layout.pipeline_schedule=dualpipev; use layout.pipeline_parallel_size <= 2"],
    ),
    (
        {"layout.pipeline_parallel_size": 2, "layout.pipeline_schedule": "dualpipev", "model.num_layers": 3},
        ["model.num_layers (3) must be at least 2 x layout.pipeline_parallel_size (4) for layout.pipeline_schedule=dualpipev; use model.num_layers >= 4"],
    ),
    (
        {"batch.global_batch_size": 15, "batch.micro_batch_size": 2, "layout.data_parallel_size": 2},
        ["batch.global_batch_size (15) must be divisible by batch.micro_batch_size (2) x layout.data_parallel_size (2) = 4; use 12 or 16"],
    ),
    (
        {"batch.global_batch_size": 3, "layout.data_parallel_size": 8},
        ["batch.global_batch_size (3) must be divisible by batch.micro_batch_size (1) x layout.data_parallel_size (8) = 8; use 8"],
    ),
    (
        {"layout.pipeline_schedule": "dualpipev"},
        ["layout.pipeline_schedule=dualpipev has no effect with layout.pipeline_parallel_size=1; use layout.pipeline_parallel_size >= 2, or layout.pipeline_schedule=1f1b"],
    ),
    (
        {"layout.pipeline_schedule": "dualpipev", "layout.pipeline_parallel_size": 2, "batch.global_batch_size": 6, "batch.micro_batch_size": 2},
        ["layout.pipeline_schedule=dualpipev needs at least 2 x layout.pipeline_parallel_size = 4 micro-batches, but batch.global_batch_size (6) / (2 in a round) = 3; use batch.global_batch_size >= 8"],
    ),
    (
        {"layout.pipeline_schedule": "dualpipev", "layout.pipeline_parallel_size": 2, "zero.offload": "cpu"},
        ["zero.offload=cpu cannot be used with layout.pipeline_schedule=dualpipev; use zero.offload=none, or layout.pipeline_schedule=1f1b"],
    ),
    (
        {"layout.stage_boundaries": [2]},
        ["layout.stage_boundaries=[2] has no effect with layout.pipeline_parallel_size=1; set it to []"],
    ),
    (
        {"layout.stage_boundaries": [2], "layout.pipeline_parallel_size": 2, "layout.pipeline_schedule": "dualpipev"},
        ["layout.stage_boundaries=[2] cannot be used with layout.pipeline_schedule=dualpipev; set it to []"],
    ),
    (
        {"layout.stage_boundaries": [1, 2], "layout.pipeline_parallel_size": 2},
        ["layout.stage_boundaries must hold 1 block (layout.pipeline_parallel_size - 1), but holds 2"],
    ),
    (
        {"layout.stage_boundaries": [2], "layout.pipeline_parallel_size": 4},
        ["layout.stage_boundaries must hold 3 blocks (layout.pipeline_parallel_size - 1), but holds 1"],
    ),
    (
        {"layout.stage_boundaries": [2, 2], "layout.pipeline_parallel_size": 3},
        ["layout.stage_boundaries must be strictly increasing, but is [2, 2]"],
    ),
    (
        {"layout.stage_boundaries": [0], "layout.pipeline_parallel_size": 2},
        ["layout.stage_boundaries must lie in 1 to 3 (model.num_layers - 1), but is [0]"],
    ),
    (
        {"layout.stage_boundaries": [4], "layout.pipeline_parallel_size": 2},
        ["layout.stage_boundaries must lie in 1 to 3 (model.num_layers - 1), but is [4]"],
    ),
]  # fmt: skip

ZERO: list[Case] = [
    ({"zero.stage": 4}, ["zero.stage must be 0 to 3, but is 4"]),
    (
        {"zero.stage": 2, "layout.pipeline_parallel_size": 2, "layout.tensor_parallel_size": 2},
        ["zero.stage=2 needs layout.pipeline_parallel_size=1, but it is 2; use zero.stage=1, or layout.pipeline_parallel_size=1 with layout.tensor_parallel_size=4"],
    ),
    (
        {"zero.stage": 3, "layout.pipeline_parallel_size": 4, "layout.tensor_parallel_size": 2},
        ["zero.stage=3 needs layout.pipeline_parallel_size=1, but it is 4; use zero.stage=1, or layout.pipeline_parallel_size=1"],
    ),
    (
        {"zero.stage": 0, "precision.dtype": "bf16"},
        ["zero.stage=0 needs precision.dtype=fp32, but it is bf16 (DeepSpeed would add up gradients in bf16, or count tied weights twice); use zero.stage=1"],
    ),
    (
        {"zero.stage": 0, "precision.dtype": "fp16"},
        ["zero.stage=0 needs precision.dtype=fp32, but it is fp16 (DeepSpeed would add up gradients in fp16, or count tied weights twice); use zero.stage=1"],
    ),
    (
        {"zero.stage": 0, "zero.offload": "cpu"},
        ["zero.offload=cpu needs zero.stage >= 1, but it is 0; use zero.stage=1, or zero.offload=none"],
    ),
    (
        {"zero.offload": "nvme", "zero.nvme_path": "/nvme", "checkpoint.save_final": False},
        ["zero.offload=nvme needs zero.stage=3, but it is 1; use zero.stage=3, or zero.offload=cpu"],
    ),
    (
        {"zero.offload": "nvme", "zero.stage": 3, "zero.nvme_path": "/nvme"},
        [
            "zero.offload=nvme cannot be saved yet: the state on NVMe is not in the checkpoint format; "
            "use checkpoint=none, or zero.offload=cpu"
        ],
    ),
    (
        {"zero.offload": "nvme", "zero.stage": 3, "checkpoint.save_final": False},
        ["zero.offload=nvme needs zero.nvme_path; set it to a folder on a local NVMe disk"],
    ),
    (
        {"zero.offload": "cpu", "zero.nvme_path": "/nvme", "checkpoint.save_final": False},
        ["zero.nvme_path has no effect with zero.offload=cpu; use zero.offload=nvme, or leave it out"],
    ),
    (
        {"zero.offload_parameters": True, "zero.offload": "cpu", "zero.stage": 2},
        ["zero.offload_parameters=true needs zero.stage=3, but it is 2; use zero.stage=3, or zero.offload_parameters=false"],
    ),
    (
        {"zero.offload_parameters": True, "zero.stage": 3},
        ["zero.offload_parameters=true needs zero.offload=cpu or nvme, but it is none; use zero.offload=cpu, or zero.offload_parameters=false"],
    ),
    (
        {"optimizer.implementation": "deepspeed_cpu"},
        ["optimizer.implementation=deepspeed_cpu needs optimizer state in CPU memory; use zero.offload=cpu, runtime.device=cpu, or optimizer.implementation=auto"],
    ),
    (
        {"optimizer.implementation": "torch", "zero.offload": "nvme", "zero.stage": 3, "zero.nvme_path": "/nvme", "checkpoint.save_final": False},
        ["zero.offload=nvme needs optimizer.implementation=deepspeed_cpu, but it is torch; use optimizer.implementation=auto"],
    ),
]  # fmt: skip

TRAINING: list[Case] = [
    (
        {"checkpoint.every": 4, "checkpoint.keep_every": 10},
        ["checkpoint.keep_every (10) must be a multiple of checkpoint.every (4); use 8 or 12"],
    ),
    (
        {"checkpoint.keep_every": 10},
        ["checkpoint.keep_every (10) must be a multiple of checkpoint.every (0); set checkpoint.every"],
    ),
    (
        {"checkpoint.on_failure": "go_on"},
        ["checkpoint.on_failure=go_on has no effect with checkpoint.every=0; set checkpoint.every, or leave it out"],
    ),
    ({"schedule.warmup_steps": 100}, ["schedule.warmup_steps (100) must be less than train.steps (100)"]),
    (
        {"schedule.kind": "constant", "schedule.decay_steps": 5},
        ["schedule.decay_steps has no effect with schedule.kind=constant; leave it out"],
    ),
    (
        {"schedule.kind": "linear", "schedule.warmup_steps": 10, "schedule.decay_steps": 10},
        ["schedule.decay_steps (10) must be greater than schedule.warmup_steps (10)"],
    ),
    (
        {"schedule.kind": "wsd", "schedule.warmup_steps": 95},
        ["schedule.warmup_steps (95) + schedule.decay_steps (10) must be at most train.steps (100) for schedule.kind=wsd"],
    ),
    (
        {"train.eval_every": 5, "data.validation_fraction": 0.0},
        ["train.eval_every=5 needs data.validation_fraction > 0, but it is 0; use data.validation_fraction=0.02, or train.eval_every=0"],
    ),
    ({"data.source": "files"}, ["data.source=files needs data.files; for example data.files=[corpus/*.jsonl]"]),
    ({"data.source": "files", "data.files": [" "]}, ["data.files must hold paths, but one of them is empty"]),
    (
        {"data.source": "megatron", "model.vocab_size": 300},
        ["data.source=megatron needs data.files; for example data.files=[corpus_text_document]"],
    ),
    ({"data.files": ["a"]}, ["data.files has no effect with data.source=stdlib; use data=files, or leave it out"]),
    ({"data.source": "hub"}, ["data.source=hub needs data.hub_path; for example data.hub_path=HuggingFaceFW/fineweb-edu"]),
    (
        {"data.source": "hub", "data.hub_path": "a", "data.document_separator": "|"},
        ["data.document_separator has no effect with data.source=hub; use data=files, or leave it out"],
    ),
    (
        {"data.source": "files", "data.files": ["a.txt"], "data.document_separator": ""},
        ["data.document_separator must not be empty; set null for one document a file"],
    ),
    (
        {"data.text_join": " "},
        ["data.text_join has no effect with data.source=stdlib; use data=files or hub, or leave it out"],
    ),
    ({"data.hub_download": True}, ["data.hub_download=true has no effect with data.source=stdlib; use data=hub, or leave it out"]),
    ({"data.hub_path": "a"}, ["data.hub_path has no effect with data.source=stdlib; use data=hub, or leave it out"]),
    ({"data.hub_name": "a"}, ["data.hub_name has no effect with data.source=stdlib; use data=hub, or leave it out"]),
    (
        {"tokenizer.kind": "pretrained"},
        ["tokenizer.kind=pretrained needs tokenizer.path: a folder, a tokenizer.json or a Hugging Face name; for example tokenizer.path=openai-community/gpt2"],
    ),
    ({"tokenizer.path": "gpt2"}, ["tokenizer.path has no effect with tokenizer.kind=bpe; use tokenizer=pretrained"]),
    (
        {"tokenizer.kind": "bytes", "tokenizer.vocab_size": 300},
        ["tokenizer.vocab_size has no effect with tokenizer.kind=bytes; leave it out"],
    ),
    ({"tokenizer.vocab_size": 256}, ["tokenizer.vocab_size must be at least 257 (256 bytes and end of text), but is 256"]),
    (
        {"model.vocab_size": 256},
        ["model.vocab_size must be at least 257 (256 bytes and end of text) for tokenizer.kind=bpe, but is 256"],
    ),
    (
        {"tokenizer.vocab_size": 500, "model.vocab_size": 400},
        ["tokenizer.vocab_size (500) must be at most model.vocab_size (400); use model.vocab_size=500 or null"],
    ),
    (
        {"tokenizer.vocab_size": 400, "model.vocab_size": 500},
        ["tokenizer.vocab_size (400) must equal model.vocab_size (500), or rows of the embedding are never trained; use model.vocab_size=400 or null, or tokenizer.allow_unused_ids=true"],
    ),
    (
        {"tokenizer.kind": "bytes", "model.vocab_size": 256},
        ["the byte tokenizer (257) must be at most model.vocab_size (256); use model.vocab_size=257 or null"],
    ),
    (
        {"data.source": "synthetic"},
        ["data.source=synthetic needs model.vocab_size, since its ids come without a tokenizer; for example model.vocab_size=2048"],
    ),
    (
        {"data.source": "synthetic", "model.vocab_size": 300, "tokenizer.kind": "bytes"},
        ["tokenizer.* has no effect with data.source=synthetic; leave it out"],
    ),
    (
        {"data.source": "synthetic", "model.vocab_size": 300, "data.max_documents": 3},
        ["data.max_documents has no effect with data.source=synthetic; use data.synthetic_tokens"],
    ),
    (
        {"data.source": "synthetic", "model.vocab_size": 300, "data.dedup": "exact", "data.workers": 2},
        [
            "data.dedup=exact has no effect with data.source=synthetic, whose ids come ready-made; leave it out",
            "data.workers=2 has no effect with data.source=synthetic, whose ids come ready-made; leave it out",
        ],
    ),
    (
        {"data.validation_fraction": 0.5, "data.test_fraction": 0.5},
        ["data.validation_fraction (0.5) + data.test_fraction (0.5) must be less than 1, or nothing is left to train on"],
    ),
    ({"data.workers": 0}, ["data.workers must be at least 1, but is 0"]),
    (
        {"data.source": "tokens", "model.vocab_size": 300},
        ["data.source=tokens needs data.files; for example data.files=[tokens/*.bin]"],
    ),
    (
        {"data.source": "tokens", "data.files": ["a"], "model.vocab_size": 300, "tokenizer.kind": "bytes"},
        ["data.source=tokens holds token ids already, so tokenizer.kind=bytes cannot make them; use tokenizer=pretrained with the tokenizer that made them, or leave it out"],
    ),
    (
        {"data.source": "tokens", "data.files": ["a"], "model.vocab_size": 300, "data.eos_id": 300},
        ["data.eos_id (300) must be less than model.vocab_size (300): it is an id of the files"],
    ),
    ({"data.validation_files": ["v"]}, ["data.validation_files has no effect with data.source=stdlib; use data=files, or leave it out"]),
    ({"data.hub_validation_split": "validation"}, ["data.hub_validation_split has no effect with data.source=stdlib; use data=hub, or leave it out"]),
    ({"data.source": "hub", "data.hub_path": "a/b", "data.hub_validation_split": "train"}, ["data.hub_validation_split must be another split than data.hub_split, but both are train; name another one, or use data.validation_fraction"]),
    (
        {"data.source": "files", "data.files": ["a"], "data.validation_files": ["", "v"]},
        ["data.validation_files must hold paths, but one of them is empty"],
    ),
    (
        {"data.source": "files", "data.files": ["a"], "data.validation_files": ["v"], "data.validation_fraction": 0.3},
        ["data.validation_fraction=0.3 has no effect with data.validation_files; leave one of them out"],
    ),
    ({"data.eos_id": 3}, ["data.eos_id=3 has no effect with data.source=stdlib; use data=tokens, or leave it out"]),
    (
        {"data.token_dtype": "uint16", "data.source": "megatron", "data.files": ["a"], "model.vocab_size": 300},
        ["data.token_dtype=uint16 has no effect with data.source=megatron; use data=tokens, or leave it out"],
    ),
    (
        {"data.source": "megatron", "data.files": ["a"]},
        ["data.source=megatron needs model.vocab_size, since its ids come without a tokenizer; for example model.vocab_size=50257"],
    ),
    (
        {"data.source": "megatron", "data.files": ["a"], "model.vocab_size": 300, "tokenizer.kind": "bytes"},
        ["data.source=megatron holds token ids already, so tokenizer.kind=bytes cannot make them; use tokenizer=pretrained with the tokenizer that made them, or leave it out"],
    ),
    (
        {"precision.dtype": "fp16", "train.max_skipped_in_row": 0},
        ["train.max_skipped_in_row must be at least 1 with precision.dtype=fp16, which skips steps until its loss scale fits, but is 0"],
    ),
    (
        {"train.spike_window": 64, "train.spike_sigmas": 4.0},
        [
            "train.spike_window has no effect with train.spike_policy=none; leave it out, or set a policy",
            "train.spike_sigmas has no effect with train.spike_policy=none; leave it out, or set a policy",
        ],
    ),
    (
        {"train.spike_policy": "skip", "train.max_rewinds": 5},
        ["train.max_rewinds has no effect with train.spike_policy=skip; use train.spike_policy=rewind, or leave it out"],
    ),
    (
        {"train.spike_policy": "rewind"},
        ["train.spike_policy=rewind goes back to a checkpoint and needs checkpoint.every > 0, but it is 0"],
    ),
    (
        {"runtime.check_replicas_every": 5, "layout.data_parallel_size": 2, "zero.stage": 3},
        ["runtime.check_replicas_every compares weights that several ranks hold, and has no effect with layout.tensor_parallel_size=1, layout.data_parallel_size=2 and zero.stage=3; leave it out"],
    ),
    (
        {"runtime.profile_first_step": 9, "runtime.profile_steps": 2, "runtime.profile_ranks": (0,)},
        [
            f"runtime.{key} has no effect with runtime.profile=false; use runtime.profile=true, or leave it out"
            for key in ("profile_first_step", "profile_steps", "profile_ranks")
        ],
    ),
    (
        {"runtime.profile": True, "train.steps": 6, "schedule.warmup_steps": 1},
        ["runtime.profile=true records steps 5 to 7 and needs train.steps of at least 7, but it is 6; use for example runtime.profile_first_step=1 runtime.profile_steps=3"],
    ),
    (
        {"runtime.profile": True, "train.steps": 2, "schedule.warmup_steps": 1, "runtime.profile_first_step": 2, "runtime.profile_steps": 2},
        ["runtime.profile=true records steps 2 to 3 and needs train.steps of at least 3, but it is 2; use for example runtime.profile_first_step=1 runtime.profile_steps=2"],
    ),
    (
        {"logging.timeline_step": 7, "train.steps": 6, "schedule.warmup_steps": 1},
        ["logging.timeline_step (7) must be a step of the run, but train.steps is 6; use at most 6, 0 for none, or leave it out"],
    ),
    (
        {"runtime.profile": True, "runtime.profile_steps": 21},
        ["runtime.profile_steps must be 1 to 20, but is 21"],
    ),
    ({"runtime.profile_steps": 21}, ["runtime.profile_steps must be 1 to 20, but is 21"]),
    (
        {"runtime.profile": True, "runtime.profile_ranks": (3, 4), "layout.pipeline_parallel_size": 2, "layout.tensor_parallel_size": 2},
        ["runtime.profile_ranks must hold ranks of the run, 0 to 3, but holds 4"],
    ),
    (
        {"runtime.profile": True, "runtime.profile_ranks": (-1,)},
        ["runtime.profile_ranks must hold ranks of the run, 0 to 0, but holds -1"],
    ),
    (
        {"runtime.profile": True, "runtime.profile_ranks": (0, 0)},
        ["runtime.profile_ranks must hold each rank once, but is [0, 0]"],
    ),
    (
        {"runtime.compile": True, "zero.stage": 3},
        ["runtime.compile=true cannot be used with zero.stage=3: DeepSpeed's hooks inside the blocks break every program; use zero.stage=2, or runtime.compile=false"],
    ),
    (
        {"runtime.compile": True, "model.dropout": 0.1},
        ["runtime.compile=true needs model.dropout=0 and model.attention_dropout=0, but they are 0.1 and 0: each block has masks of its own and would be compiled anew; use runtime.compile=false"],
    ),
    (
        {"runtime.liger": True, "runtime.device": "cpu"},
        ["runtime.liger=true needs a GPU, but the ranks compute on the CPU; use runtime.liger=false"],
    ),
    (
        {"runtime.compile": True, "runtime.recheck_every": 10},
        ["runtime.recheck_every looks at the results of single layers, which runtime.compile=true makes programs of; use runtime.compile=false, or runtime.recheck_every=0"],
    ),
    (
        {"runtime.liger": True, "runtime.compile": True, "runtime.device": "cuda"},
        ["runtime.liger=true has no effect in compiled blocks; use either it or runtime.compile=true"],
    ),
    (
        {"runtime.liger": True, "model.bias": False, "runtime.device": "cuda"},
        ["runtime.liger=true has no effect with model.norm=layernorm, model.bias=false and model.activation=gelu_tanh: liger-kernel has kernels for RMSNorm, LayerNorm with a bias, and swiglu, and none for an offset in half precision; leave it out"],
    ),
    (
        {"runtime.liger": True, "model.norm": "rmsnorm", "model.norm_offset": 1.0, "precision.dtype": "bf16", "runtime.device": "cuda"},
        ["runtime.liger=true has no effect with model.norm=rmsnorm, model.norm_offset=1 in bf16 and model.activation=gelu_tanh: liger-kernel has kernels for RMSNorm, LayerNorm with a bias, and swiglu, and none for an offset in half precision; leave it out"],
    ),
    (
        {"runtime.cpu_matmul": "onednn", "precision.dtype": "bf16"},
        ["runtime.cpu_matmul=onednn chooses a library for fp32 on a CPU, and has no effect with precision.dtype=bf16; leave it out"],
    ),
    (
        {"runtime.cpu_matmul": "torch", "runtime.device": "cuda"},
        ["runtime.cpu_matmul=torch chooses a library for fp32 on a CPU, and has no effect on a GPU; leave it out"],
    ),
    (
        {"runtime.hang_timeout_s": 1800},
        ["runtime.hang_timeout_s (1800) must be less than runtime.timeout_s (1800), after which collectives fail by themselves"],
    ),
]  # fmt: skip

MINIMUM: list[Case] = [
    ({key: least - 1}, [f"{key} must be at least {least}, but is {least - 1}"]) for key, least in MINIMA.items()
]

RANGES: list[Case] = [
    ({"optimizer.lr": 0.0}, ["optimizer.lr must be greater than 0, but is 0.0"]),
    ({"optimizer.lr": float("nan")}, ["optimizer.lr must be greater than 0, but is nan"]),
    ({"optimizer.lr": float("inf")}, ["optimizer.lr must be greater than 0, but is inf"]),
    ({"optimizer.eps": -1e-8}, ["optimizer.eps must be greater than 0, but is -1e-08"]),
    ({"optimizer.beta1": 1.0}, ["optimizer.beta1 must be at least 0 and less than 1, but is 1.0"]),
    ({"optimizer.beta2": -0.1}, ["optimizer.beta2 must be at least 0 and less than 1, but is -0.1"]),
    ({"optimizer.weight_decay": -1.0}, ["optimizer.weight_decay must be at least 0, but is -1.0"]),
    ({"optimizer.grad_clip": -1.0}, ["optimizer.grad_clip must be at least 0, but is -1.0"]),
    ({"optimizer.grad_clip": float("inf")}, ["optimizer.grad_clip must be at least 0, but is inf"]),
    ({"model.dropout": 1.0}, ["model.dropout must be at least 0 and less than 1, but is 1.0"]),
    ({"model.attention_dropout": -0.1}, ["model.attention_dropout must be at least 0 and less than 1, but is -0.1"]),
    ({"data.validation_fraction": 1.0}, ["data.validation_fraction must be at least 0 and less than 1, but is 1.0"]),
    ({"model.position": "rope", "model.rope_theta": 0.0}, ["model.rope_theta must be greater than 0, but is 0.0"]),
    ({"model.norm_eps": 0.0}, ["model.norm_eps must be greater than 0, but is 0.0"]),
    ({"model.init_std": 0.0}, ["model.init_std must be greater than 0, but is 0.0"]),
    ({"train.spike_sigmas": -1.0}, ["train.spike_sigmas must be greater than 0, but is -1.0"]),
    ({"precision.initial_scale_power": 32}, ["precision.initial_scale_power must be 0 to 31, but is 32"]),
    ({"schedule.min_lr_ratio": 1.5}, ["schedule.min_lr_ratio must be 0 to 1, but is 1.5"]),
    ({"launch.master_port": 70000}, ["launch.master_port must be 1 to 65535, but is 70000"]),
    ({"train.seed": 2**63}, [f"train.seed must be 0 to {2**63 - 1}, but is {2**63}"]),
    ({"name": ""}, ["name must not be empty"]),
    ({"run_dir": " "}, ["run_dir must not be empty"]),
    ({"checkpoint.resume": ""}, ["checkpoint.resume must not be empty"]),
    ({"name": "a/b"}, ["name must be one folder name, but is 'a/b'; set run_dir to choose the place"]),
    ({"name": ".."}, ["name must be one folder name, but is '..'; set run_dir to choose the place"]),
]


@pytest.mark.parametrize(("changes", "messages"), [*MODEL, *LAYOUT, *ZERO, *TRAINING, *MINIMUM, *RANGES])
def test_bad_config(changes: dict[str, object], messages: list[str]) -> None:
    assert problems(build({**BASE, **changes})) == messages
