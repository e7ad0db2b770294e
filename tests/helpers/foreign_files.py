"""Files of other trainers, written for the tests: their keys, and the public values of known runs."""

from __future__ import annotations

import json
from collections.abc import Mapping

NEOX_RUN: dict[str, object] = {
    "optimizer": {"type": "Adam", "params": {"lr": 6e-4, "betas": [0.9, 0.95], "eps": 1e-8}},
    "min_lr": 6e-5,
    "zero_optimization": {"stage": 1, "allgather_bucket_size": 500000000, "overlap_comm": True},
    "train_micro_batch_size_per_gpu": 4,
    "data_impl": "mmap",
    "checkpoint_activations": True,
    "checkpoint_num_layers": 1,
    "synchronize_each_layer": True,
    "gradient_clipping": 1.0,
    "weight_decay": 0.1,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "fp16": {"enabled": True, "loss_scale": 0, "loss_scale_window": 1000, "hysteresis": 2, "min_loss_scale": 1},
    "train_iters": 320000,
    "lr_decay_iters": 320000,
    "distributed_backend": "nccl",
    "lr_decay_style": "cosine",
    "warmup": 0.01,
    "checkpoint_factor": 10000,
    "eval_interval": 1000,
    "eval_iters": 10,
    "log_interval": 100,
    "keep_last_n_checkpoints": 4,
    "wall_clock_breakdown": True,
}
"""What the public configs of GPT-NeoX say about a run."""
NEOX_125M: dict[str, object] = {
    "pipe_parallel_size": 1,
    "model_parallel_size": 1,
    "num_layers": 12,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "seq_length": 2048,
    "max_position_embeddings": 2048,
    "norm": "layernorm",
    "pos_emb": "rotary",
    "no_weight_tying": True,
    "gpt_j_residual": False,
    "output_layer_parallelism": "column",
    "scaled_upper_triang_masked_softmax_fusion": False,
    "bias_gelu_fusion": False,
    "init_method": "small_init",
    "output_layer_init_method": "wang_init",
    **NEOX_RUN,
}
NEOX_LOCAL: dict[str, object] = {
    "data_path": "data/enwik8/enwik8_text_document",
    "vocab_file": "data/gpt2-vocab.json",
    "merge_file": "data/gpt2-merges.txt",
    "save": "checkpoints",
    "load": "checkpoints",
    "tensorboard_dir": "tensorboard",
    "log_dir": "logs",
}
NEOX_20B: dict[str, object] = {
    **NEOX_125M,
    "vocab-file": "./20B_checkpoints/20B_tokenizer.json",
    "save": "./20B_checkpoints",
    "load": "./20B_checkpoints",
    "data-path": "./data/pile_20B_tokenizer/pile_20B_tokenizer_text_document",
    "pipe_parallel_size": 4,
    "model_parallel_size": 2,
    "num_layers": 44,
    "hidden_size": 6144,
    "num_attention_heads": 64,
    "rotary_pct": 0.25,
    "gpt_j_residual": True,
    "bias_gelu_fusion": True,
    "optimizer": {"type": "Adam", "params": {"lr": 0.97e-4, "betas": [0.9, 0.95], "eps": 1e-8}},
    "min_lr": 0.97e-5,
    "gradient_accumulation_steps": 32,
    "split": "995,4,1",
    "weight_decay": 0.01,
    "train_iters": 150000,
    "lr_decay_iters": 150000,
    "tokenizer_type": "HFTokenizer",
}
PYTHIA = {"70m": (6, 512, 8), "160m": (12, 768, 12), "1_4b": (24, 2048, 16), "12b": (36, 5120, 40)}
"""Layers, width and heads of models of the Pythia suite (arXiv 2304.01373, Table 1)."""
PYTHIA_NOT_EMBEDDED = {"70m": 18_915_328, "160m": 85_056_000, "1_4b": 1_208_602_624, "12b": 11_327_027_200}
"""Parameters outside of the embeddings, as the same table gives them."""

GPT3_SCRIPT = """#!/bin/bash
# GPT-3 175B in Megatron-LM
GPUS=8
NODES=128
DATA=${DATA:-/data/books_text_document}
LAUNCH=(--nproc_per_node $GPUS --nnodes $NODES --master_addr localhost)
MODEL=(
    --num-layers 96 --hidden-size 12288   # the width
    --num-attention-heads 96
    --seq-length 2048 --max-position-embeddings 2048
)
TRAIN=(
    --micro-batch-size 1 --global-batch-size 1536 --rampup-batch-size 16 16 5859375
    --train-iters 500000 --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.95
    --init-method-std 0.006 --clip-grad 1.0 --fp16
    --lr 6.0e-5 --lr-decay-style cosine --min-lr 6.0e-6 --lr-warmup-fraction .001 --lr-decay-iters 430000
)
PARALLEL=(--tensor-model-parallel-size 8 --pipeline-model-parallel-size 16)
torchrun ${LAUNCH[@]} pretrain_gpt.py \\
    ${MODEL[@]} ${TRAIN[@]} ${PARALLEL[@]} \\
    --data-path $DATA --vocab-file gpt2-vocab.json --merge-file gpt2-merges.txt --split 949,50,1 \\
    --log-interval 100 --save-interval 10000 --eval-interval 1000 --eval-iters 10 \\
    --save $1 --load $1 --tensorboard-dir $2
"""

GPT3_DEEPSPEED = """#!/bin/bash
dir=`pwd`
seq_len=2048
size=1.3
global_batch=512
tokens_b=300
tokens=$((${tokens_b} * 1000000000))
samples=$(( 300 * 1000000000 * 2 / ${seq_len} ))
mp=2
pp=2
no_pp="false"
zero=1
gpus=$(($(ds_ssh nvidia-smi --query-gpu=name | wc -l)-2))
activation="true"
name="gpt_${size}B_$(date +%H)"
options=" \\
    --tensor-model-parallel-size ${mp} --init-method-std 0.013 \\
    --lr-decay-tokens ${tokens} --lr-warmup-tokens $((3000 * 1000000)) \\
    --micro-batch-size 2 --global-batch-size ${global_batch} --exit-duration-in-mins 30000000 \\
    --num-layers 24 --hidden-size 2048 --num-attention-heads 16 \\
    --seq-length ${seq_len} --max-position-embeddings ${seq_len} \\
    --train-tokens ${tokens} --train-samples ${samples} \\
    --lr 2.0e-4 --min-lr 1.0e-6 --lr-decay-style cosine --adam-beta1 0.9 --adam-beta2 0.95 \\
    --weight-decay 0.1 --clip-grad 1.0 --hysteresis 2 --num-workers 0 --fp16 --seed 1234 \\
    --split 949,50,1 --log-interval 10 --eval-interval 100 --eval-iters 10 --save-interval 100 \\
    --load /out/${name} --save /out/${name} \\
    --vocab-file gpt2-vocab.json --merge-file gpt2-merges.txt --data-path /pile/pile_text_document --data-impl mmap"
if [ "${activation}" = "true" ]; then
options="${options} --checkpoint-activations"
fi
beside=" --deepspeed --deepspeed_config ds.json --zero-stage ${zero} --pipeline-model-parallel-size ${pp}"
if [[ "${no_pp}" = "true" ]]; then
beside="${beside} --no-pipeline-parallel"
fi
for (( node = 0; node < 4; node++ )); do ssh worker-$node true; done
deepspeed ${dir}/../pretrain_gpt.py ${options} ${beside} &>> log.txt
"""

BLOOM = """#!/bin/bash
#SBATCH --nodes=48
#SBATCH --gres=gpu:8
source $CODE/start-environment
OUT=$SCRATCH_DIR/checkpoints
TRAIN_SAMPLES=220_000_000  # 450B tokens
OPTIMIZER=" \\
    --optimizer adam --adam-beta1 0.9 --adam-beta2 0.95 --adam-eps 1e-8 \\
    --lr 6e-5 --min-lr 6e-6 --lr-decay-style cosine \\
    --lr-decay-samples 200_000_000 --lr-warmup-samples 183_105 --clip-grad 1.0 --weight-decay 1e-1 \\
    "
GPT=" \\
    --pp-partition-method 'type:transformer|embedding' \\
    --num-layers 70 --hidden-size 14336 --num-attention-heads 112 \\
    --seq-length 2048 --max-position-embeddings 2048 \\
    --micro-batch-size 2 --rampup-batch-size 192 16 9_765_625 --global-batch-size 2048 \\
    --train-samples $TRAIN_SAMPLES \\
    --tokenizer-type PretrainedFromHF --tokenizer-name-or-path bigscience/tokenizer \\
    --init-method-std 0.0048 --embed-layernorm --bf16 --seed 42 --position-embedding-type alibi \\
    --checkpoint-activations --pad-vocab-size-to 250880 --kill-switch-path $OUT/stop \\
    $OPTIMIZER \\
    "
config_json="./ds_config.$SLURM_JOB_ID.json"
cat <<EOT > $config_json
{
  "train_micro_batch_size_per_gpu": 2,
  "train_batch_size": 2048,
  "gradient_clipping": 1.0,
  "zero_optimization": {"stage": 0},
  "bf16": {"enabled": true},
  "steps_per_print": 2000
}
EOT
export LAUNCHER="python -u -m torch.distributed.run --nproc_per_node 8 --nnodes $SLURM_NNODES"
export CMD=" \\
    `pwd`/pretrain_gpt.py \\
    --tensor-model-parallel-size 4 --pipeline-model-parallel-size 12 \\
    $GPT --log-interval 1 --save-interval 100 --eval-interval 1000 --eval-iters 1 \\
    --save $OUT --load $OUT --train-weighted-split-paths-path $OUT/train.txt \\
    --deepspeed --deepspeed_config ${config_json} --zero-stage 0 \\
    "
echo $CMD
clear; srun --wait=60 --jobid $SLURM_JOB_ID bash -c "$LAUNCHER --node_rank \\$SLURM_PROCID $CMD" 2>&1 | tee -a log.txt
"""

NANOTRON: dict[str, object] = {
    "checkpoints": {"checkpoint_interval": 10, "checkpoints_path": "checkpoints", "resume_checkpoint_path": None},
    "data_stages": [
        {
            "name": "Stable",
            "start_training_step": 1,
            "data": {
                "dataset": {
                    "hf_dataset_or_datasets": "stas/openwebtext-10k",
                    "hf_dataset_splits": "train",
                    "hf_dataset_config_name": None,
                    "text_column_name": "text",
                },
                "num_loading_workers": 1,
                "seed": 42,
            },
        }
    ],
    "general": {"project": "debug", "run": "tiny_llama_%date_%jobid", "seed": 42},
    "lighteval": None,
    "logging": {"iteration_step_info_interval": 1, "log_level": "info"},
    "model": {
        "ddp_bucket_cap_mb": 25,
        "dtype": "bfloat16",
        "init_method": {"std": 0.025},
        "make_vocab_size_divisible_by": 1,
        "model_config": {
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": 16,
            "intermediate_size": 64,
            "is_llama_config": True,
            "max_position_embeddings": 256,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "tie_word_embeddings": True,
            "use_cache": True,
            "vocab_size": 256,
        },
    },
    "optimizer": {
        "accumulate_grad_in_fp32": True,
        "clip_grad": 1.0,
        "learning_rate_scheduler": {
            "learning_rate": 0.0003,
            "lr_decay_starting_step": None,
            "lr_decay_steps": 13,
            "lr_decay_style": "cosine",
            "lr_warmup_steps": 2,
            "lr_warmup_style": "linear",
            "min_decay_lr": 1e-05,
        },
        "optimizer_factory": {"adam_beta1": 0.9, "adam_beta2": 0.95, "adam_eps": 1e-08, "name": "adamW"},
        "weight_decay": 0.01,
        "zero_stage": 0,
    },
    "parallelism": {"dp": 2, "pp": 2, "pp_engine": "1f1b", "tp": 2, "tp_mode": "REDUCE_SCATTER"},
    "tokenizer": {"tokenizer_name_or_path": "gpt2", "tokenizer_max_length": None},
    "tokens": {
        "batch_accumulation_per_replica": 1,
        "limit_val_batches": 0,
        "micro_batch_size": 2,
        "sequence_length": 256,
        "train_steps": 15,
        "val_check_interval": -1,
    },
}

DEEPSPEED: dict[str, object] = {
    "train_batch_size": 256,
    "train_micro_batch_size_per_gpu": 8,
    "optimizer": {"type": "AdamW", "params": {"lr": 3e-5, "betas": [0.8, 0.999], "eps": 1e-8, "weight_decay": 3e-7}},
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {"warmup_min_lr": 0, "warmup_max_lr": 3e-5, "warmup_num_steps": 500, "total_num_steps": 10000},
    },
    "fp16": {"enabled": True, "loss_scale": 0, "initial_scale_power": 16},
    "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": True}},
    "gradient_clipping": 1.0,
    "steps_per_print": 10,
}


def neox_text(values: Mapping[str, object]) -> str:
    """Return a config as GPT-NeoX's files are written: one mapping of YAML in JSON's form, with comments."""
    lines = [f'  "{key}": {json.dumps(value)},  # a comment' for key, value in values.items()]
    return "\n".join(["# A config", "{", *lines, "}", ""])


def pythia(size: str) -> dict[str, object]:
    """Return the config of a model of the Pythia suite, with the dashes of its files."""
    layers, hidden, heads = PYTHIA[size]
    values = {**NEOX_125M, "num_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    values |= {"rotary_pct": 0.25, "gpt_j_residual": True, "attention_config": [[["flash"], layers]]}
    values |= {"train_micro_batch_size_per_gpu": 32, "gas": 1, "launcher": "slurm", "deepspeed_slurm": True}
    values |= {"train_data_paths": ["/pile/pile_text_document"], "valid_data_paths": ["/pile/pile_text_document"]}
    values |= {"tokenizer_type": "HFTokenizer", "vocab_file": "/pile/20B_tokenizer.json"}
    return {key.replace("_", "-") if key not in ("optimizer", "zero_optimization") else key: value
            for key, value in values.items()}  # fmt: skip
