"""Words that people write as a value, and the value here that they mean. Data only."""

from __future__ import annotations

from typing import Final

_DTYPES: Final = {
    "bf16": "bfloat16 torch.bfloat16 bf16_mixed bf16_true brain_float16",
    "fp16": "float16 torch.float16 half 16 16_mixed 16_true fp16_mixed amp",
    "fp32": "float32 torch.float32 float full single 32 32_true none no",
}
_SCHEDULES: Final = {
    "cosine": "cosine_annealing annealing cosine_with_min_lr cosine_with_warmup cosineannealinglr warmupcosinelr cos",
    "linear": "linear_with_warmup warmupdecaylr linear_decay",
    "constant": "constant_with_warmup warmuplr none no off",
    "wsd": "warmup_stable_decay trapezoidal",
}

OTHER_VALUES: dict[str, dict[str, str]] = {
    "model.activation": {
        "swiglu": "swi_glu llamamlp",
        "silu": "swish",
        "relu2": "squared_relu relu_squared",
        "gelu_tanh": "gelu_new gelu_fast gelu_pytorch_tanh openai_gelu tanh_gelu",
    },
    "model.norm": {
        "layernorm": "layer_norm ln",
        "rmsnorm": "rms_norm rms llamarmsnorm t5layernorm",
    },
    "model.position": {
        "rope": "rotary rotary_embedding",
        "none": "nope no false off",
        "learned": "absolute learned_absolute",
    },
    "model.wiring": {
        "pre": "pre_norm prenorm",
        "post": "post_norm postnorm",
        "parallel": "gpt_j gptj",
        "parallel_two_norms": "gpt_neox neox",
        "sandwich": "gemma2 gemma_2 peri",
        "output": "olmo2 olmo_2",
    },
    "model.rope_scaling.kind": {"none": "default off false no", "longrope": "su long", "dynamic": "ntk dynamic_ntk"},
    "model.query_key_norm": {"none": "false off no", "head": "true per_head qwen3", "full": "olmo2 all"},
    "model.layer_pattern": {"full": "full_attention global", "window": "sliding_attention local sliding swa"},
    "model.lora.targets": {
        "all": "all_linear all_modules linear",
        "q": "q_proj query wq",
        "k": "k_proj key wk",
        "v": "v_proj value wv",
        "qkv": "c_attn query_key_value qkv_proj wqkv linear_qkv",
        "output": "o_proj out_proj dense wo linear_proj attention_output",
        "gate": "gate_proj w1",
        "up": "up_proj c_fc fc1 fc_in dense_h_to_4h w3",
        "gate_up": "gate_up_proj linear_fc1",
        "down": "down_proj fc2 fc_out dense_4h_to_h w2 linear_fc2",
    },
    "model.recompute": {"full": "true yes on block all", "selective": "op", "none": "false no off null"},
    "layout.pipeline_schedule": {"dualpipev": "dualpipe"},
    "zero.offload": {"cpu": "true yes on", "none": "false no off null", "nvme": "disk ssd"},
    "precision.dtype": dict(_DTYPES),
    "schedule.kind": dict(_SCHEDULES),
    "optimizer.kind": {"adamw": "adam adam_w adamw_torch fused_adam fusedadam cpu_adam"},
    "optimizer.implementation": {
        "torch": "fused foreach adamw adamw_torch adamw_torch_fused pytorch",
        "deepspeed_cpu": "cpu cpu_adam cpuadam deepspeedcpuadam",
    },
    "data.source": {
        "files": "text txt json jsonl parquet local file csv",
        "hub": "hf huggingface hf_datasets datasets",
        "megatron": "mmap indexed nemo neox gpt_neox",
        "tokens": "bin npy memmap numpy olmo nanotron datatrove litdata litgpt nanogpt llm_c packed tokenized",
        "synthetic": "mock random dummy fake",
    },
    "tokenizer.kind": {
        "pretrained": "hf huggingface auto autotokenizer hftokenizer huggingfacetokenizer sentencepiece "
        "gpt2bpetokenizer tiktoken",
        "bytes": "byte byte_level char characters",
        "bpe": "byte_pair",
    },
    "checkpoint.on_failure": {"stop": "fail raise abort exit", "go_on": "continue ignore warn"},
    "logging.wandb": {"online": "true yes on enabled", "offline": "dryrun local", "disabled": "false no off none null"},
    "logging.console": {"auto": "rich tqdm bar true", "plain": "text lines simple verbose", "quiet": "none off silent"},
    "runtime.device": {"cuda": "gpu cuda_0 nvidia", "cpu": "cpu_0"},
    "train.spike_policy": {"none": "off false no ignore null"},
}
"""Key -> its value here -> other words that people write for it."""

OTHER_FILES: dict[str, dict[str, str]] = {
    "model": {
        "gpt2_124m": "gpt2 gpt_2 gpt2_small gpt2_base gpt2_117m gpt2_125m nanogpt openai_gpt2",
        "gpt2_355m": "gpt2_medium gpt2_345m gpt2_350m",
        "gpt2_774m": "gpt2_large gpt2_762m",
        "gpt2_1558m": "gpt2_xl gpt2_1_5b gpt2_1.5b",
        "gpt1_117m": "gpt gpt1 gpt_1 openai_gpt",
        "gpt3_125m": "gpt3_small",
        "gpt3_350m": "gpt3_medium",
        "gpt3_760m": "gpt3_large",
        "gpt3_1_3b": "gpt3_xl gpt3_1.3b",
        "gpt3_175b": "gpt3 gpt_3",
        "llama_7b": "llama llama1 llama_1_7b llama1_7b",
        "llama2_70b": "llama2 llama_2_70b llama_2_70b_hf",
        "llama3_8b": "llama3 llama_3 llama_3_8b meta_llama_3_8b llama_8b",
        "llama3_70b": "llama_3_70b meta_llama_3_70b",
        "mistral_7b": "mistral mistral_7b_v0.1",
        "gpt_debug": "debug tiny small test debugmodel",
        "llama_debug": "llama_tiny tiny_llama_debug",
    },
    "optimizer": {"adamw": "adam adam_w adamw_torch adamw_torch_fused fused_adam fusedadam cpu_adam default"},
    "zero": {
        "stage0": "0 zero0 z0 stage_0 none off ddp null false no",
        "stage1": "1 zero1 z1 stage_1",
        "stage2": "2 zero2 z2 stage_2",
        "stage3": "3 zero3 z3 stage_3 fsdp",
        "stage1_offload": "offload cpu stage1_cpu zero1_offload cpu_offload",
        "stage2_offload": "stage2_cpu zero2_offload z2_offload",
        "stage3_offload": "stage3_cpu zero3_offload z3_offload",
        "stage3_infinity": "infinity nvme zero_infinity stage3_nvme",
    },
    "precision": dict(_DTYPES),
    "schedule": dict(_SCHEDULES),
    "layout": {"single": "none one single_gpu single_device 1 default"},
    "data": {
        "files": "text txt json jsonl parquet local file csv",
        "hub": "hf huggingface hf_datasets",
        "megatron": "mmap bin indexed nemo neox",
        "synthetic": "mock random dummy fake",
    },
    "tokenizer": {
        "pretrained": "hf huggingface auto autotokenizer",
        "bytes": "byte byte_level char",
        "bpe": "train trained",
    },
    "checkpoint": {"none": "off never no false null disabled"},
    "logging": {"local": "none off no null false plain console jsonl", "all": "everything"},
    "runtime": {"cuda": "gpu nvidia"},
    "eval": {"default": "none off no null"},
}
"""Group -> its file here -> other words that people write for it."""

OTHER_WORDS: dict[str, str] = {
    "logging=wandb": "logging.wandb=online",
    "logging=tensorboard": "logging.tensorboard=true",
    "logging=csv": "logging.csv=true",
    "logging=quiet": "logging.console=quiet",
    "layout=ddp": "layout.data_parallel_size=auto",
    "layout=dp": "layout.data_parallel_size=auto",
    "eval=samples_only": "eval=samples",
    "checkpoint=latest": "checkpoint.resume=auto",
    "checkpoint=auto": "checkpoint.resume=auto",
}
"""A word that no file of the group fits -> the setting that does."""

NOT_HERE: dict[str, tuple[str, str]] = {
    "optimizer": (
        "sgd adafactor adagrad lamb lars sophia shampoo soap adam8bit adamw_8bit adamw_bnb_8bit onebitadam "
        "onebitlamb zerooneadam rmsprop came schedule_free",
        "the optimizers are optimizer=adamw, optimizer=lion and optimizer=muon",
    ),
    "precision": (
        "fp8 8 int8 float8 fp64 float64 64 double transformer_engine",
        "only bf16, fp16 and fp32 are available",
    ),
    "precision.dtype": ("fp8 int8 float8 fp64 float64 double", ""),
    "schedule": (
        "polynomial inverse_sqrt inverse_square_root exponential cosine_with_restarts reduce_lr_on_plateau onecycle",
        "only constant, cosine, linear and wsd are available",
    ),
    "schedule.kind": (
        "polynomial inverse_sqrt inverse_square_root exponential cosine_with_restarts reduce_lr_on_plateau onecycle",
        "",
    ),
    "model.position": ("sinusoidal relative t5 xpos yarn", ""),
    "model.activation": ("geglu reglu quick_gelu mish tanh", ""),
    "model.rope_scaling.kind": ("proportional axial mrope", ""),
    "model.norm": ("batchnorm none dyt scalenorm", ""),
    "layout.pipeline_schedule": ("gpipe interleaved interleaved1f1b zb zbv zero_bubble loopedbfs afab", ""),
    "runtime.device": ("mps tpu xla npu xpu hpu rocm hip", ""),
}
"""Key or group -> words that are known elsewhere and not available here -> the answer to them.

None of these words must be taken for a mistyped one of ours."""
