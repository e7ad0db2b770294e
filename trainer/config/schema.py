"""The config schema: one frozen dataclass per Hydra group. The only place where a key is declared.

`register.py` makes mutable twins of these classes for Hydra (Hydra cannot compose frozen ones); what
travels below the entry point are these frozen objects. No torch, no project imports but its own parts,
`schema_train.py`, `schema_runtime.py` and `schema_logging.py`, and the choices of the components of a model.
A string literal under a field is its documentation: meaning, unit, range, what it interacts with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from trainer.config.elastic import Elastic
from trainer.config.schema_logging import ConsoleKind as ConsoleKind
from trainer.config.schema_logging import EvalConfig as EvalConfig
from trainer.config.schema_logging import LoggingConfig as LoggingConfig
from trainer.config.schema_logging import WandbMode as WandbMode
from trainer.config.schema_logging import WandbResume as WandbResume
from trainer.config.schema_runtime import PROFILE_AFTER_STEPS as PROFILE_AFTER_STEPS
from trainer.config.schema_runtime import CpuMatmul as CpuMatmul
from trainer.config.schema_runtime import DeviceKind as DeviceKind
from trainer.config.schema_runtime import LaunchConfig as LaunchConfig
from trainer.config.schema_runtime import RuntimeConfig as RuntimeConfig
from trainer.config.schema_train import SpikePolicy as SpikePolicy
from trainer.config.schema_train import TrainConfig as TrainConfig
from trainer.spec.execution import RecomputeKind as RecomputeKind
from trainer.spec.parts import NormKind as NormKind


class PositionKind(Enum):
    """How a token learns where it is."""

    learned = "learned"
    rope = "rope"


class ActivationKind(Enum):
    """MLP non-linearity. `gelu` is exact, `gelu_tanh` is GPT-2's approximation, `swiglu` is gated SiLU."""

    gelu = "gelu"
    gelu_tanh = "gelu_tanh"
    relu = "relu"
    swiglu = "swiglu"


class PipelineSchedule(Enum):
    """Order of forward and backward micro-batches over the stages."""

    f1b1 = "1f1b"
    dualpipev = "dualpipev"


class OffloadKind(Enum):
    """Where ZeRO keeps optimizer state (and, for stage 3, parameters)."""

    none = "none"
    cpu = "cpu"
    nvme = "nvme"


class Dtype(Enum):
    """Compute precision. Master weights and gradient accumulation are always fp32."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class ScheduleKind(Enum):
    """Learning-rate curve after the warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"
    wsd = "wsd"


class AdamImplementation(Enum):
    """Who computes AdamW. `auto`: DeepSpeed's CPU kernel when state is offloaded, torch otherwise."""

    auto = "auto"
    torch = "torch"
    deepspeed_cpu = "deepspeed_cpu"


class DataSource(Enum):
    """Where training text comes from."""

    stdlib = "stdlib"
    files = "files"
    hub = "hub"
    megatron = "megatron"
    synthetic = "synthetic"


class TokenizerKind(Enum):
    """`bpe`: a byte-level BPE trained on the data. `bytes`: 256 byte values. `pretrained`: loaded."""

    bpe = "bpe"
    bytes = "bytes"
    pretrained = "pretrained"


class SaveFailure(Enum):
    """What a run does when a checkpoint cannot be written. The last one of a run must be, whatever this says."""

    stop = "stop"
    go_on = "go_on"


@dataclass(frozen=True)
class ModelConfig:
    """One GPT. All sizes are of the whole model, never of a rank."""

    name: str = "custom"
    """Shown in logs; no effect on the model."""
    hidden_size: int = 64
    """Width of the residual stream."""
    num_layers: int = 4
    """Number of transformer blocks."""
    num_attention_heads: int = 4
    """Query heads; divisible by layout.tensor_parallel_size."""
    num_key_value_heads: int | None = None
    """Key/value heads (grouped-query attention). null: as many as query heads."""
    head_dim: int | None = None
    """Size of one head. null: hidden_size / num_attention_heads."""
    ffn_hidden_size: int | None = None
    """Inner width of the MLP (of each of gate and up for swiglu). null: 4 x hidden_size."""
    seq_length: int = 128
    """Tokens in a training sequence; also the number of learned positions."""
    vocab_size: int | None = None
    """Number of token ids. null: as many as the tokenizer has."""
    vocab_pad_multiple: int = 8
    """The embedding is padded to a multiple of this times tensor_parallel_size."""
    position: PositionKind = PositionKind.learned
    """Learned absolute positions, or rotary embedding of queries and keys."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies (position=rope)."""
    norm: NormKind = NormKind.layernorm
    """Pre-norm kind."""
    norm_eps: float = 1e-5
    """Added to the variance in a norm."""
    activation: ActivationKind = ActivationKind.gelu_tanh
    """MLP non-linearity."""
    bias: bool = True
    """Biases in linears and LayerNorms."""
    tied_embeddings: bool = True
    """The output head uses the token embedding's weight."""
    sliding_window: int | None = None
    """Attend only to this many last tokens (Mistral). null: all."""
    dropout: float = 0.0
    """Probability of zeroing an element after the embedding, attention output and MLP output."""
    attention_dropout: float = 0.0
    """Probability of zeroing an attention weight."""
    init_std: float = 0.02
    """Standard deviation of weights at start; residual outputs use init_std / sqrt(2 num_layers)."""
    recompute: RecomputeKind = RecomputeKind.none
    """Activation checkpointing of each block."""
    fused_loss: bool = True
    """Compute head and loss a few rows at a time, never the whole logits: less memory, same numbers."""


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes token ids."""

    kind: TokenizerKind = TokenizerKind.bpe
    """Trained BPE, raw bytes, or a pretrained one."""
    vocab_size: int | None = None
    """bpe: entries to train. null: model.vocab_size if set, otherwise 2048."""
    path: str | None = None
    """pretrained: a local folder, a tokenizer.json, or a Hugging Face name."""
    eos_token: str | None = None
    """pretrained: the token that ends a document. null: the one that tokenizer_config.json, special_tokens_map.json or
    generation_config.json beside the tokenizer.json names, in this order; without them the one with a known name."""
    allow_unused_ids: bool = False
    """Accept a model.vocab_size larger than the tokenizer's range (embedding rows that no text uses)."""


@dataclass(frozen=True)
class DataConfig:
    """What the model reads."""

    source: DataSource = DataSource.stdlib
    """stdlib | files | hub | megatron | synthetic."""
    files: tuple[str, ...] = ()
    """files: paths and globs of .txt, .jsonl, .parquet, .txt.gz, .jsonl.gz. megatron: prefixes of .bin/.idx pairs."""
    text_key: str = "text"
    """jsonl, parquet, hub: field that holds the text."""
    hub_path: str | None = None
    """hub: a Hugging Face data set name or a local `save_to_disk` folder."""
    hub_name: str | None = None
    """hub: configuration (subset) of the data set."""
    hub_split: str = "train"
    """hub: split to read, or several as train+test, or parts of them as train[:1000] or train[10%:20%]."""
    max_documents: int | None = None
    """Read only this many documents of the source."""
    validation_fraction: float = 0.02
    """Share of the text held out for evaluation, chosen by a hash of each document (of each part of a long one)."""
    max_samples: int | None = None
    """Train on only this many sequences again and again (for overfitting tests)."""
    cache_dir: str | None = None
    """Where tokenised shards live. null: $TRIDENT_CACHE, otherwise ~/.cache/trident."""
    synthetic_tokens: int = 262144
    """synthetic: length of the generated stream, in tokens."""


@dataclass(frozen=True)
class LayoutConfig:
    """How ranks share the model. rank = (stage * dp + dp_rank) * tp + tp_rank."""

    pipeline_parallel_size: int = 1
    """Number of pipeline stages; each holds whole blocks."""
    tensor_parallel_size: int = 1
    """Ranks that split every linear layer; keep them inside one node."""
    data_parallel_size: int | Elastic | None = None
    """Replicas of the model. null: world size / (pp * tp), or 1 when the ranks are started here. auto: the same, but
    when started here as many as GPUs (without GPUs: CPU cores that the container or job may use) and an unchanged
    batch.global_batch_size allow."""
    sequence_parallel: bool = False
    """Shard norms and residuals over the sequence within the tensor-parallel group."""
    pipeline_schedule: PipelineSchedule = PipelineSchedule.f1b1
    """1f1b | dualpipev (needs num_micro_batches >= 2 * pp)."""
    stage_boundaries: tuple[int, ...] = ()
    """First block of each stage after the first, to override the cost-based cut. Empty: cut by cost."""


@dataclass(frozen=True)
class ZeroConfig:
    """Sharding of optimizer state (1), gradients (2), parameters (3) over data-parallel ranks."""

    stage: int = 1
    """0 to 3; 2 and 3 need pipeline_parallel_size=1."""
    offload: OffloadKind = OffloadKind.none
    """Where optimizer state lives: none | cpu | nvme."""
    offload_parameters: bool = False
    """Stage 3 with offload: keep parameters there too."""
    nvme_path: str | None = None
    """offload=nvme: a folder on a local NVMe disk."""
    reduce_bucket_size: int | None = None
    """Elements reduced in one collective; stages 1 and 2 have a buffer as large, or two. null: a sixteenth of the
    rank's parameters, at least 1M, at most 50M."""
    overlap_comm: bool = True
    """Reduce gradients while backward runs (pp=1 on CUDA)."""


@dataclass(frozen=True)
class PrecisionConfig:
    """Number formats."""

    dtype: Dtype = Dtype.fp32
    """fp32 | bf16 | fp16."""
    initial_scale_power: int = 16
    """fp16: the loss scale starts at 2 to this power."""
    loss_scale_window: int = 1000
    """fp16: steps without overflow before the scale doubles."""


@dataclass(frozen=True)
class BatchConfig:
    """Sizes in sequences. num_micro_batches = global / (micro * dp) is derived."""

    global_batch_size: int = 16
    """Sequences in one optimizer step, over all ranks."""
    micro_batch_size: int = 1
    """Sequences a rank puts through the model at once."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101)."""

    lr: float = 3e-4
    """Peak learning rate."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled decay; applied to matrices only, not to norms and biases."""
    grad_clip: float = 1.0
    """Scale gradients so that their global L2 norm is at most this. 0: off."""
    implementation: AdamImplementation = AdamImplementation.auto
    """Kernel that computes the update."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over the run, in steps."""

    kind: ScheduleKind = ScheduleKind.cosine
    """Curve after the warm-up."""
    warmup_steps: int = 0
    """Linear ramp from 0."""
    min_lr_ratio: float = 0.1
    """Final lr / peak lr (linear, cosine, wsd)."""
    decay_steps: int | None = None
    """linear, cosine: steps from start to the minimum (null: train.steps). wsd: length of the last decay
    (null: a tenth of train.steps)."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Saving and resuming."""

    every: int = 0
    """Steps between saves. 0: only at the end and when asked to stop."""
    keep: int = 2
    """Newest whole checkpoints kept; older ones are deleted."""
    keep_every: int = 0
    """Steps whose multiples are kept for good, besides the newest. 0: none."""
    asynchronous: bool = True
    """Hold the loop only while the state is copied to host memory, and write it beside the training."""
    on_failure: SaveFailure = SaveFailure.stop
    """When a checkpoint cannot be written, for example on a full disk: stop (exit 8), or go_on until the next one."""
    save_final: bool = True
    """Save when the last step is done."""
    resume: str = "auto"
    """Where a run begins that has no checkpoint of its own in run_dir; one that has goes on from its newest, whatever
    this says. auto: at step 1. never: at step 1, and run_dir must not hold a run that this command did not begin. A
    path (a run's folder or a checkpoint): at that checkpoint's step, with its optimizer and its place in the data."""
    init_from: str | None = None
    """A run's folder or a checkpoint whose weights a run begins with, at step 1 with a fresh optimizer, a schedule and
    data of its own. Not together with a path in checkpoint.resume. Like it, it counts until the run has a checkpoint of
    its own in run_dir."""


@dataclass(frozen=True)
class TridentConfig:
    """The whole config: one field per group."""

    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    name: str = "default"
    """Name of the run."""
    run_dir: str = "runs/${name}"
    """Folder of the run."""
