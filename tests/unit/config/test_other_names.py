from __future__ import annotations

import re

import pytest

from trainer.config.choices import meant_choice
from trainer.config.compose import compose, options
from trainer.config.keys import GROUPS, KEYS, coerce, unknown_key
from trainer.config.nearness import likeness, nearest
from trainer.config.other_names import meanings_elsewhere
from trainer.config.other_names_model import ABSENT_MODEL, DIFFERENT_MODEL, SAME_MODEL, WORDS_MODEL
from trainer.config.other_names_run import ABSENT_RUN, DIFFERENT_RUN, SAME_RUN, WORDS_RUN
from trainer.config.other_values import NOT_HERE, OTHER_FILES, OTHER_VALUES, OTHER_WORDS
from trainer.errors import ConfigError

ALL_GROUPS = [*GROUPS, "experiment"]
NAMES = meanings_elsewhere()


def told(word: str) -> str:
    """Return what is said of a word after the key."""
    name, _, value = word.partition("=")
    text = unknown_key(name, ALL_GROUPS, value)
    assert text.startswith(f"there is no key '{name}'; ")
    return text.removeprefix(f"there is no key '{name}'; ")


def guesses(text: str) -> set[str]:
    """Return the keys that a text proposes."""
    return {key for key in KEYS if re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", text)}


def test_there_are_several_hundred_names() -> None:
    assert len(NAMES) > 600


def test_every_key_that_is_proposed_exists() -> None:
    proposed = {key for meaning in NAMES.values() for key in meaning.keys}
    assert proposed <= {*KEYS, *GROUPS}
    notes = " ".join(meaning.note for meaning in NAMES.values())
    mentioned = set(re.findall(rf"\b((?:{'|'.join(GROUPS)})\.\w+)", notes))
    assert mentioned - {"tokenizer.json"} <= set(KEYS)


@pytest.mark.parametrize("words", [*(WORDS_MODEL | WORDS_RUN).values(), dict.fromkeys(OTHER_WORDS.values(), "")])
def test_every_word_that_is_proposed_composes(words: dict[str, str]) -> None:
    for word in words.values() if any(words.values()) else words:
        compose([word])


def test_a_name_is_told_in_one_way() -> None:
    tables = (SAME_MODEL, SAME_RUN)
    listed = [name for table in tables for names in table.values() for name in names.split()]
    for table in (DIFFERENT_MODEL, DIFFERENT_RUN, WORDS_MODEL, WORDS_RUN, ABSENT_MODEL, ABSENT_RUN):
        listed += [name for names in table for name in names.split()]
    assert sorted(name for name in set(listed) if listed.count(name) > 1) == []
    assert len(listed) == len(NAMES)


def test_a_name_that_a_key_of_ours_ends_with_leads_to_that_key() -> None:
    ends = {key.rpartition(".")[2]: key for key in KEYS}
    assert {name for name, meaning in NAMES.items() if name in ends and ends[name] not in meaning.keys} == set()


def test_no_name_is_a_key_or_written_as_nobody_would_find_it() -> None:
    assert [name for name in NAMES if name in KEYS or name in GROUPS] == []
    assert [name for name in NAMES if name != name.lower() or "-" in name] == []


def test_every_name_of_another_trainer_is_answered_and_not_guessed_at() -> None:
    for name, meaning in NAMES.items():
        text = told(f"{name}=1")
        assert "did you mean" not in text, name
        assert "is meant" not in text, name
        assert guesses(text) >= {key for key in meaning.keys if key in KEYS}, name


def test_no_table_proposes_a_value_or_a_file_that_does_not_exist() -> None:
    for key, values in OTHER_VALUES.items():
        for value, others in values.items():
            coerce(key, KEYS[key], value)
            for other in others.split():
                with pytest.raises(ConfigError):
                    coerce(key, KEYS[key], other)
    for group, files in OTHER_FILES.items():
        assert set(files) <= set(options()[group])
        assert not {other for others in files.values() for other in others.split()} & set(options()[group])
    assert set(NOT_HERE) <= {*KEYS, *GROUPS}


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("intermediate_size=2048", "it is model.ffn_hidden_size=2048 here"),
        ("model.intermediate_size", "it is model.ffn_hidden_size here"),
        ("--num-attention-heads=3", "did you mean 'model.num_attention_heads'?"),
        ("--tensor-model-parallel-size=2", "it is layout.tensor_parallel_size=2 here"),
        ("model.max_position_embeddings=2048", "it is model.seq_length=2048 here"),
        ("model.hidden_act=gelu_new", "it is model.activation=gelu_tanh here"),
        ("hidden_act=silu", "it is model.activation=silu here"),
        (
            "use_bias_in_norms=true",
            "the nearest here is model.norm_bias, for all LayerNorms",
        ),
        ("pos_emb=rotary", "it is model.position=rope here"),
        ("per_device_train_batch_size=4", "it is batch.micro_batch_size=4 here"),
        ("train_micro_batch_size_per_gpu=4", "it is batch.micro_batch_size=4 here"),
        ("save_total_limit=3", "it is checkpoint.keep=3 here"),
        ("clip_grad=1.0", "it is optimizer.grad_clip=1.0 here"),
        ("lr_warmup_iters=100", "it is schedule.warmup_steps=100 here"),
        ("warmup_ratio=0.03", "the nearest here is schedule.warmup_steps, in steps and not a share of the run"),
        (
            "min_lr=1e-5",
            "the nearest here is schedule.min_lr_ratio, a share of optimizer.lr and not a rate: min_lr / lr",
        ),
        ("num_train_epochs=3", "it is train.epochs=3 here"),
        (
            "train.tokens=1e9",
            "the nearest here is train.steps, in steps: tokens / (batch.global_batch_size x model.seq_length)",
        ),
        ("bf16=true", "write precision=bf16"),
        ("bf16.enabled=false", "write precision=fp32"),
        ("fp16", "write precision=fp16"),
        ("report_to=wandb", "write logging.wandb=online"),
        (
            "report_to=comet",
            "write logging.wandb=online or logging.tensorboard=true or logging.csv=true or logging=local or "
            "logging=all",
        ),
        ("optimizer.params.lr=1e-4", "did you mean 'optimizer.lr'?"),
        ("optimizer.params.betas=[0.9,0.95]", "the nearest here is optimizer.beta1 or optimizer.beta2, a key each"),
        ("zero_optimization.stage=3", "it is zero.stage=3 here"),
        ("zero_optimization.offload_optimizer.device=cpu", "it is zero.offload=cpu here"),
        ("training.local_batch_size=2", "it is batch.micro_batch_size=2 here"),
        ("activation_checkpoint.mode=op", "it is model.recompute=selective here"),
        ("trainer.max_steps=9", "it is train.steps=9 here"),
        ("rotary_pct=0.25", "the nearest here is model.rope_dims, a number of elements of each head and not a share"),
        (
            "attn_implementation=sdpa",
            "there is nothing of the kind: PyTorch takes the fastest attention kernel that there is",
        ),
        ("intermediate_szie=3", "if intermediate_size is meant, it is model.ffn_hidden_size=3 here"),
        ("use_wandb=true", "it is logging.wandb=online here"),
        ("NUM_LAYERS=3", "did you mean 'model.num_layers'?"),
        ("data.files[0]=x", "did you mean 'data.files'?"),
    ],
)
def test_what_is_said(word: str, answer: str) -> None:
    assert told(word) == answer


@pytest.mark.parametrize(
    ("word", "wrong"),
    [
        ("model.max_position_embeddings", "model.tied_embeddings"),
        ("attention_bias", "model.num_attention_heads"),
        ("hidden_act", "model.hidden_size"),
        ("model.hidden_act", "model.hidden_size"),
        ("train.tokens", "eval.max_tokens"),
        ("attn_implementation", "optimizer.implementation"),
        ("model.attn_implementation", "optimizer.implementation"),
    ],
)
def test_a_wrong_guess_is_not_made(word: str, wrong: str) -> None:
    assert wrong not in guesses(told(word))


@pytest.mark.parametrize(
    "word",
    [
        *("attentions_per_word", "tokens_per_word", "size", "model.attention_heads_scale"),
        *("train.hooks", "optimizer.groups", "checkpoint.format", "max_things", "num_things", "data.weights"),
    ],
)
def test_what_is_like_no_key_gets_no_guess(word: str) -> None:
    text = told(word)
    assert "did you mean" not in text
    assert "is meant" not in text


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("model.hiden_size", "model.hidden_size"),
        ("num_layer", "model.num_layers"),
        ("numlayers", "model.num_layers"),
        ("warm_up_steps", "schedule.warmup_steps"),
        ("train.warmup_step", "schedule.warmup_steps"),
        ("log_evry", "train.log_every"),
        ("optimizer.weigth_decay", "optimizer.weight_decay"),
        ("layout.tensor_paralel_size", "layout.tensor_parallel_size"),
        ("globalbatchsize", "batch.global_batch_size"),
        ("schedule.warmup", "schedule.warmup_steps"),
    ],
)
def test_a_slip_of_the_fingers_is_understood(word: str, key: str) -> None:
    assert key in guesses(told(word))


@pytest.mark.parametrize(
    ("key", "value", "guess"),
    [
        ("precision.dtype", "bfloat16", "bf16"),
        ("precision.dtype", 16, "fp16"),
        ("model.activation", "swish", "silu"),
        ("model.norm", "RMSNorm", "rmsnorm"),
        ("model.recompute", True, "full"),
        ("logging.wandb", True, "online"),
        ("logging.wandb", False, "disabled"),
        ("zero.offload", True, "cpu"),
        ("runtime.device", "cuda:0", "cuda"),
        ("schedule.kind", "cosine_with_warmup", "cosine"),
        ("layout.pipeline_schedule", "1F1B", "1f1b"),
        ("model.position", "sinusoidal", ""),
        ("model.activation", "geglu", ""),
        ("layout.pipeline_schedule", "gpipe", ""),
    ],
)
def test_values_of_other_trainers(key: str, value: object, guess: str) -> None:
    with pytest.raises(ConfigError) as caught:
        coerce(key, KEYS[key], value)
    (problem,) = caught.value.problems
    assert problem.partition("; ")[2] == (f"did you mean '{guess}'?" if guess else "")


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("model=gpt2", "did you mean model=gpt2_124m?"),
        ("model=openai-community/gpt2-xl", "did you mean model=gpt2_1558m?"),
        ("model=meta-llama/Meta-Llama-3-8B", "did you mean model=llama3_8b?"),
        ("precision=bfloat16", "did you mean precision=bf16?"),
        ("precision=bf16-mixed", "did you mean precision=bf16?"),
        ("precision=fp8", "only bf16, fp16 and fp32 are available"),
        ("optimizer=adam", "did you mean optimizer=adamw?"),
        ("optimizer=sgd", "the optimizers are optimizer=adamw, optimizer=lion and optimizer=muon"),
        ("zero=3", "did you mean zero=stage3?"),
        ("zero=stage3_ofload", "did you mean zero=stage3_offload?"),
        ("layout=tp3xpp2", "did you mean layout=tp3_pp2?"),
        ("layout=PP2-TP2", "did you mean layout=pp2_tp2?"),
        ("layout=pp4_dualpipe", "did you mean layout=pp4_dualpipev?"),
        ("layout=tensor4_data8", "did you mean layout=tp4_dp8?"),
        (
            "layout=eight",
            "write tpN, ppN, dpN, sp and dualpipev, each at most once, in any order, joined by _, or single, or auto",
        ),
        ("layout=cp2", "only pp, tp and dp are available, and sp beside tp"),
        ("layout=ddp", "write layout.data_parallel_size=auto"),
        ("data=corpus.txt", "write data=files data.files=[corpus.txt]"),
        ("data=HuggingFaceFW/fineweb", "write data=hub data.hub_path=HuggingFaceFW/fineweb"),
        ("tokenizer=gpt2", "write tokenizer=pretrained tokenizer.path=gpt2"),
        ("logging=wandb", "write logging.wandb=online"),
        ("batch=32", "write batch.global_batch_size=32"),
        ("schedule=inverse_sqrt", "only constant, cosine, linear and wsd are available"),
        ("runtime=tpu_pod", "choose from cpu, cuda, default"),
    ],
)
def test_files_that_a_group_does_not_have(word: str, answer: str) -> None:
    group, _, value = word.partition("=")
    assert meant_choice(group, value, options()[group]) == answer


def test_nearness_wants_every_part() -> None:
    assert likeness("hidden_size", "hidden_size") == 1
    assert likeness("hidden_act", "hidden_size") == 0
    assert likeness("attention_bias", "num_attention_heads") == 0
    assert nearest("a", []) is None
