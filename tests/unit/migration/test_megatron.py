from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.foreign_files import BLOOM, GPT3_DEEPSPEED, GPT3_SCRIPT
from tests.unit.migration.conftest import Described, Migrate, lost, numbers
from trainer.config.compose import compose
from trainer.config.models import make_model
from trainer.config.schema import ActivationKind, Dtype, NormKind, PositionKind, RecomputeKind, ScheduleKind
from trainer.errors import ConfigError
from trainer.migration.batch import Samples
from trainer.migration.draft import Why

SIZES = "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 128 --max-position-embeddings 128"
BATCH = "--micro-batch-size 2 --global-batch-size 16 --train-iters 100 --lr 1e-3 --vocab-size 1000"


def test_gpt3_is_the_model_that_ships(migrated: Migrate) -> None:
    done = migrated(gpt3__sh=GPT3_SCRIPT)
    assert all(one.agrees for one in done.compared)
    shipped = compose(["model=gpt3_175b"]).model
    assert numbers(done)["parameters"] == (make_model(shipped, 50257).parameter_count,) * 2
    # 3.2M tokens of 2,048: GPT-3, arXiv 2005.14165, Table 2.1.
    assert numbers(done)["tokens a step"] == (3_145_728, 3_145_728)
    config = done.config
    assert (config.layout.pipeline_parallel_size, config.layout.tensor_parallel_size) == (16, 8)
    # 128 nodes of 8 GPUs.
    assert config.layout.data_parallel_size == 8
    assert config.data.files == ("/data/books_text_document",)
    assert (config.data.validation_fraction, config.data.test_fraction) == (0.05, 0.001)
    assert (config.schedule.warmup_steps, config.schedule.decay_steps) == (430, 430_000)
    assert config.model.dropout == 0.1
    assert config.optimizer.beta2 == 0.95
    assert config.batch.rampup_sizes == tuple(range(16, 1536, 16))
    # 5,859,375 samples in 95 sizes.
    assert config.batch.rampup_tokens[0] == -(-5_859_375 // 95) * 2048
    assert config.batch.rampup_tokens[-1] == 5_859_375 * 2048
    assert lost(done, Why.unknown) == set()
    assert {"--save", "--load"} <= lost(done, Why.no_effect)
    assert {"--nproc_per_node", "--nnodes", "--master_addr"} <= lost(done, Why.environment)


def test_gpt3_of_megatron_deepspeed_is_the_model_that_ships(migrated: Migrate) -> None:
    done = migrated(gpt3__sh=GPT3_DEEPSPEED)
    assert all(one.agrees for one in done.compared)
    shipped = compose(["model=gpt3_1_3b"]).model
    assert numbers(done)["parameters"] == (make_model(shipped, 50257).parameter_count,) * 2
    assert numbers(done)["tokens a step"] == (1_048_576, 1_048_576)
    config = done.config
    # 300B tokens, 2^20 a step; the last step is full.
    assert config.train.steps == 286_103
    assert config.schedule.decay_steps == 286_103
    assert config.schedule.warmup_steps == 2862
    assert config.model.recompute is RecomputeKind.full
    assert config.zero.stage == 1
    assert config.layout.pipeline_parallel_size == 2
    assert lost(done, Why.unknown) == set()
    assert any("c style for statement is left out" in note for note in done.foreign.notes)
    assert any("ds.json is not there" in note for note in done.foreign.notes)


def test_bloom_has_its_published_size(migrated: Migrate) -> None:
    done = migrated("layout.data_parallel_size=8", bloom__slurm=BLOOM)
    assert all(one.agrees for one in done.compared)
    # BLOOM, arXiv 2211.05100, Table 3: 176,247M.
    assert numbers(done)["parameters"] == (176_247_271_424, 176_247_271_424)
    assert numbers(done)["tokens a step"] == (4_194_304, 4_194_304)
    config = done.config
    assert config.model.position is PositionKind.alibi
    assert config.model.embedding_norm
    assert config.model.tied_embeddings
    assert config.precision.dtype is Dtype.bf16
    assert config.batch.rampup_sizes[:2] == (192, 208)
    assert config.batch.rampup_tokens[-1] == 9_765_625 * 2048
    warm = Samples(2048, tuple(
        (size, end // 2048) for size, end in zip(config.batch.rampup_sizes, config.batch.rampup_tokens, strict=True)
    ))  # fmt: skip
    assert config.train.steps == warm.steps(220_000_000, is_run=True)
    # 439 steps of 192 to 84,288 samples, 405 of 208 to 168,528, 66 of 224.
    assert config.schedule.warmup_steps == 439 + 405 + 66
    assert "train_batch_size" in lost(done, Why.no_effect)
    assert "--train-weighted-split-paths-path" in lost(done, Why.by_hand)
    assert "zero.stage" in done.draft.entries
    assert "with the same numbers" in done.draft.entries["zero.stage"].note


def test_a_deepspeed_config_beside_a_script_is_read(here: Path, migrated: Migrate) -> None:
    (here / "ds.json").write_text('{"zero_optimization": {"stage": 1}, "bf16": {"enabled": true}, "amp": {"x": 1}}')
    done = migrated(run__sh=f"deepspeed pretrain_gpt.py {SIZES} {BATCH} --deepspeed_config ds.json")
    assert done.config.precision.dtype is Dtype.bf16
    assert done.config.zero.stage == 1
    assert done.foreign.notes == ()


def test_arguments_alone_are_enough(described: Described) -> None:
    for text in (f"{SIZES} {BATCH}", f"{SIZES} {BATCH}".replace(" --", "\n--"), f"{SIZES} \\\n{BATCH}"):
        done = described(arguments__txt=text)
        assert all(one.agrees for one in done.compared)
        assert done.config.batch.global_batch_size == 16
        assert done.config.optimizer.lr == 1e-3


def test_a_command_in_quotes_ends_where_its_arguments_do(described: Described) -> None:
    text = f"ARGS='{SIZES} {BATCH}'\nCMD=\"torchrun pretrain_gpt.py $ARGS &> log.txt\"\nsrun bash -c '$CMD'\n"
    done = described(run__sh=text)
    assert all(one.agrees for one in done.compared)
    assert done.draft.settings["vocab_size"].value == "1000"


def test_arguments_that_a_script_keeps_for_others_are_read(migrated: Migrate) -> None:
    done = migrated(run__sh=f"MODEL_ARGS=({SIZES} {BATCH})\nTITLE=x\n")
    assert done.config.model.hidden_size == 64
    assert done.foreign.notes == (
        "run.sh: there is no command that trains; the arguments are those of the variable MODEL_ARGS",
    )
    with pytest.raises(ConfigError, match="must hold a command that trains a GPT"):
        migrated(run__sh=f"A='{SIZES} --x'\nB='{SIZES} --y'\n")


@pytest.mark.parametrize(
    "more",
    [
        "--swiglu --normalization RMSNorm --disable-bias-linear --untie-embeddings-and-output-weights "
        "--position-embedding-type rope --group-query-attention --num-query-groups 2 --qk-layernorm",
        "--swiglu --ffn-hidden-size 172 --add-qkv-bias --disable-bias-linear",
        "--position-embedding-type rope --rotary-percent 0.5 --rotary-base 500000 --use-rope-scaling",
        "--use-rotary-position-embeddings --num-key-value-heads 1 --kv-channels 32",
        "--squared-relu --no-position-embedding --apply-layernorm-1p",
        "--position-embedding-type none --no-bias-gelu-fusion",
        "--embed-layernorm --position-embedding-type alibi",
        "--position-embedding-type learned_absolute --disable-bias-linear",
    ],
)
def test_options_of_the_model_count_alike(more: str, described: Described) -> None:
    done = described(a__txt=f"{SIZES} {BATCH} {more}")
    assert done.compared[0].there is not None
    assert all(one.agrees for one in done.compared)


def test_rows_behind_the_end_of_a_sequence_are_told(described: Described) -> None:
    done = described(a__txt=f"{SIZES} {BATCH} --max-position-embeddings 256")
    assert done.compared[0].agrees
    assert done.compared[0].expected == 128 * 64
    assert "128 rows of its table of positions" in done.compared[0].note


def test_llama_is_as_megatron_builds_it(described: Described) -> None:
    done = described(
        a__txt=f"{SIZES} {BATCH} --hidden-size 4096 --num-attention-heads 32 --swiglu --normalization RMSNorm "
        "--disable-bias-linear --untie-embeddings-and-output-weights --position-embedding-type rope --norm-epsilon 1e-6"
    )
    model = done.config.model
    # Two thirds of 4 x 4096, in whole multiples of 64.
    assert model.ffn_hidden_size == 10880
    assert (model.activation, model.norm, model.norm_eps) == (ActivationKind.swiglu, NormKind.rmsnorm, 1e-6)
    assert not model.bias


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ("--num-experts 8", "--num-experts"),
        ("--position-embedding-type relative", "--position-embedding-type"),
        ("--quick-geglu", "--quick-geglu"),
        ("--multi-latent-attention", "--multi-latent-attention"),
        ("--apply-residual-connection-post-layernorm", "--apply-residual-connection-post-layernorm"),
        ("--qk-layernorm", "--qk-layernorm"),
    ],
)
def test_a_model_that_cannot_be_had_is_not_compared(more: str, name: str, described: Described) -> None:
    done = described(a__txt=f"{SIZES} {BATCH} {more}")
    assert name in lost(done, Why.unsupported)
    assert done.compared[0].there is None


def test_a_schedule_by_samples_counts_the_warm_up_of_the_batch(described: Described) -> None:
    done = described(
        a__txt=f"{SIZES} --micro-batch-size 2 --global-batch-size 8 --rampup-batch-size 2 2 90 --train-samples 1000 "
        "--lr 1e-3 --lr-warmup-samples 60 --lr-decay-samples 500 --vocab-size 100"
    )
    batch = done.config.batch
    # Three sizes of 30 samples each: 15 steps of 2, 8 of 4 (to 62), 5 of 6 (to 92), then 8 a step.
    assert (batch.rampup_sizes, batch.rampup_tokens) == ((2, 4, 6), (30 * 128, 60 * 128, 90 * 128))
    assert done.config.train.steps == 15 + 8 + 5 + (1000 - 92) // 8
    assert done.config.schedule.warmup_steps == 15 + 8
    assert done.config.schedule.decay_steps == 15 + 8 + 5 + (500 - 92) // 8


def test_sizes_of_the_batch_by_tokens(described: Described) -> None:
    done = described(a__txt=f'{SIZES} {BATCH} --step-batch-size-schedule "0:4 1K:8 2K:16"')
    assert done.config.batch.rampup_sizes == (4, 8)
    assert done.config.batch.rampup_tokens == (1024, 2048)


def test_replicas_that_the_warm_up_of_the_batch_denies_are_left_out(described: Described) -> None:
    launcher = "torchrun --nproc_per_node 8 --nnodes 1 pretrain_gpt.py"
    done = described(run__sh=f"{launcher} {SIZES} {BATCH} --micro-batch-size 1")
    assert done.config.layout.data_parallel_size == 8
    done = described(run__sh=f"{launcher} {SIZES} {BATCH} --micro-batch-size 1 --rampup-batch-size 4 4 100")
    assert done.config.layout.data_parallel_size is None


def test_a_schedule_that_is_not_available_is_told(described: Described) -> None:
    done = described(a__txt=f"{SIZES} {BATCH} --lr-decay-style inverse-square-root")
    assert done.config.schedule.kind is ScheduleKind.cosine
    assert "--lr-decay-style" in lost(done, Why.unsupported)
    done = described(a__txt=f"{SIZES} {BATCH} --lr-decay-style WSD --lr-wsd-decay-iters 20")
    assert (done.config.schedule.kind, done.config.schedule.decay_steps) == (ScheduleKind.wsd, 20)
    assert "exponential" in done.draft.entries["schedule.decay_steps"].note


def test_weights_between_paths_are_a_blend(described: Described) -> None:
    done = described(a__txt=f"{SIZES} {BATCH} --data-path 0.7 /d/web_text_document 0.3 /d/code_text_document")
    assert done.config.data.blend.plain_weights() == {"web": 0.7, "code": 0.3}


def test_data_that_only_the_caller_knows_are_a_variable(here: Path, migrated: Migrate,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    text = f"python pretrain_gpt.py {SIZES} {BATCH} --data-path $PILE"
    done = migrated(run__sh=text)
    assert done.config.data.files == ("PILE",)
    assert "$PILE is not known: set PILE" in done.draft.entries["data.files"].note
    monkeypatch.setenv("PILE", "/data/pile_text_document")
    assert migrated(run__sh=text).config.data.files == ("/data/pile_text_document",)


def test_a_size_that_only_a_program_knows_is_asked_for(described: Described) -> None:
    with pytest.raises(ConfigError, match=r"run.sh:1: --num-layers must be a number, but is \$\(layers\)"):
        described(run__sh=f"python pretrain_gpt.py {SIZES} {BATCH} --num-layers $(layers)")
    with pytest.raises(ConfigError, match=r"--num-layers must be a number, but is \$L") as caught:
        described(run__sh=f"python pretrain_gpt.py {SIZES} {BATCH} --num-layers $L")
    assert caught.value.hints == ("the script does not set it: give it with L=VALUE trident migrate ...",)


def test_an_interval_that_only_a_program_knows_is_the_default(described: Described) -> None:
    more = "--seed $RANDOM_SEED --log-interval $(x) --save-interval $(y) --eval-interval $1 --eval-iters $2"
    done = described(run__sh=f"python pretrain_gpt.py {SIZES} {BATCH} {more}")
    assert (done.config.train.seed, done.config.train.log_every) == (1234, 100)
    assert (done.config.train.eval_every, done.config.train.eval_batches) == (1000, 100)
    assert {"--seed", "--log-interval", "--save-interval", "--eval-interval"} <= lost(done, Why.by_hand)


def test_values_that_disagree_are_told(described: Described) -> None:
    script = f"""cat <<EOT > ds.json
{{"train_micro_batch_size_per_gpu": 4, "gradient_clipping": 1.0}}
EOT
deepspeed pretrain_gpt.py {SIZES} {BATCH} --deepspeed_config ds.json
"""
    done = described(run__sh=script)
    found = {one.written: one for one in done.draft.dropped}
    assert found["train_micro_batch_size_per_gpu"].why is Why.by_hand
    assert "batch.micro_batch_size is 2, as --micro-batch-size says" in found["train_micro_batch_size_per_gpu"].reason
    assert found["gradient_clipping"].why is Why.no_effect
