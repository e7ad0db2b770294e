from __future__ import annotations

import pytest

from trainer.errors import ConfigError
from trainer.generation.options import KEYS, GenerateOptions, parse
from trainer.generation.other_option_names import OTHER_NAMES


def problems_of(*arguments: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(arguments)
    assert caught.value.exit_code == 2
    assert caught.value.hints == ("see `trident generate --help`",)
    assert not any("\n" in problem for problem in caught.value.problems)
    return caught.value.problems


def test_every_option_is_read_with_its_type() -> None:
    words = {
        "checkpoint": ("runs/demo", "runs/demo"),
        "prompt": ("def f(x=1): return", ("def f(x=1): return",)),
        "prompts": ("them.jsonl", "them.jsonl"),
        "chat": ("true", True),
        "ema": ("true", True),
        "max_tokens": ("64", 64),
        "temperature": ("1", 1.0),
        "top_k": ("40", 40),
        "top_p": ("0.9", 0.9),
        "min_p": ("0.05", 0.05),
        "repetition_penalty": ("1.1", 1.1),
        "stop": ("\n\n", ("\n\n",)),
        "eos_ids": ("2,7", (2, 7)),
        "seed": ("7", 7),
        "num_samples": ("3", 3),
        "batch_size": ("16", 16),
        "tokenizer": ("elsewhere", "elsewhere"),
        "output": ("answers.jsonl", "answers.jsonl"),
    }
    assert set(words) == set(KEYS)
    options = parse([f"{key}={text}" for key, (text, _) in words.items()])
    assert options == GenerateOptions(**{key: value for key, (_, value) in words.items()})  # type: ignore[arg-type]
    assert isinstance(options.temperature, float)


def test_prompts_and_stops_may_be_given_several_times() -> None:
    options = parse(["checkpoint=x", "prompt=a", "stop=;", "--prompt", "b", "prompt=", "stop=END"])
    assert options.prompt == ("a", "b", "")
    assert options.stop == (";", "END")


def test_the_first_word_may_be_the_checkpoint() -> None:
    assert parse(["runs/demo", "seed=3"]) == GenerateOptions("runs/demo", seed=3)
    (problem,) = problems_of("runs/demo", "checkpoint=runs/other")
    assert problem == "checkpoint must be given once, but is 'runs/demo' and 'runs/other'"


def test_words_of_the_config_are_kept_for_it() -> None:
    words = [
        "x",
        "layout=tp2",
        "--layout.pipeline_parallel_size",
        "2",
        "runtime.device=cpu",
        "--runtime.threads-per-rank=1",
    ]
    assert parse(words).settings == (
        "layout=tp2",
        "layout.pipeline_parallel_size=2",
        "runtime.device=cpu",
        "runtime.threads_per_rank=1",
    )
    assert problems_of("x", "model.hidden_size=3")[0].startswith("there is no option 'model.hidden_size'")


@pytest.mark.parametrize(
    ("words", "chat"), [(["--chat"], True), (["--chat", "false"], False), (["--chat", "seed=1"], True)]
)
def test_chat_is_a_flag_too(words: list[str], chat: bool) -> None:
    assert parse(["x", *words]).chat is chat


def test_defaults_and_the_later_word_wins() -> None:
    assert parse(["checkpoint=a", "checkpoint=b"]) == GenerateOptions(checkpoint="b")


@pytest.mark.parametrize(
    "text", ["", "null", "${HOME}", "???", "{a: 1}", "[1, 2]", "007", "true", "a\nb", "ü=€", "'x'"]
)
def test_a_prompt_is_taken_as_it_is_typed(text: str) -> None:
    assert parse(["checkpoint=x", f"prompt={text}"]).prompt == (text,)


@pytest.mark.parametrize(
    ("key", "meant"),
    [("promt", "prompt"), ("temprature", "temperature"), ("num_sample", "num_samples")],
)
def test_a_mistyped_key_is_answered_with_what_was_meant(key: str, meant: str) -> None:
    assert problems_of("checkpoint=x", f"{key}=1") == (f"there is no option {key!r}; did you mean {meant}?",)


def test_a_key_like_no_other_is_answered_with_all() -> None:
    (problem,) = problems_of("checkpoint=x", "zzz=1")
    assert all(key in problem for key in KEYS)


@pytest.mark.parametrize("words", [["--top-k=40", "--prompt", "a b"], ["--top-k", "40", "--prompt=a b"]])
def test_keys_may_have_dashes(words: list[str]) -> None:
    assert parse(["--checkpoint", "x", *words]) == GenerateOptions("x", prompt=("a b",), top_k=40)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["top-k=40"], "there is no option 'top-k'; did you mean top_k=40?"),
        (["max_new_tokens=64"], "there is no option 'max_new_tokens'; it is max_tokens=64 here"),
        (["--max-new-tokens", "64"], "there is no option 'max_new_tokens'; it is max_tokens=64 here"),
        (["--num_beams=4"], "there is no option 'num_beams'; there is nothing of the kind: beams are not searched"),
        (["--greedy"], "there is no option 'greedy'; write temperature=0"),
        (["do_sample=false"], "there is no option 'do_sample'; write temperature=0"),
        (["tp=2"], "there is no option 'tp'; it is layout.tensor_parallel_size=2 here"),
        (["stop_strings=;"], "there is no option 'stop_strings'; it is stop=; here"),
        (["--prompt"], "there is no option 'prompt'; it must be followed by its value, as in prompt=..."),
        (["--prompt", "top_k=3"], "there is no option 'prompt'; it must be followed by its value, as in prompt=..."),
    ],
)  # fmt: skip
def test_names_of_other_generators(words: list[str], answer: str) -> None:
    assert problems_of("checkpoint=x", *words) == (answer,)


def test_names_of_other_generators_lead_to_keys() -> None:
    meant = {key for meaning in OTHER_NAMES.values() for key in meaning.keys}
    assert {key for key in meant if "." not in key} <= set(KEYS)
    parse(["checkpoint=x", *(f"{key}=1" for key in meant if "." in key)])
    assert not set(KEYS) & set(OTHER_NAMES)
    for meaning in OTHER_NAMES.values():
        parse(["checkpoint=x", *meaning.words.values()])


@pytest.mark.parametrize("word", ["hello", ""])
def test_a_word_without_a_value(word: str) -> None:
    assert problems_of("checkpoint=x", word) == (f"an option must be key=value, but is {word!r}",)


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("max_tokens=many", "max_tokens must be of type int, but is 'many'"),
        ("max_tokens=1.5", "max_tokens must be of type int, but is '1.5'"),
        ("max_tokens=", "max_tokens must be of type int, but is ''"),
        ("seed=1e3", "seed must be of type int, but is '1e3'"),
        ("temperature=hot", "temperature must be of type float, but is 'hot'"),
        ("top_p=0,9", "top_p must be of type float, but is '0,9'"),
        ("max_tokens=-1", "max_tokens must be at least 0, but is -1"),
        ("num_samples=0", "num_samples must be at least 1, but is 0"),
        ("temperature=-0.1", "temperature must be a number of at least 0, but is -0.1"),
        ("temperature=nan", "temperature must be a number of at least 0, but is nan"),
        ("temperature=inf", "temperature must be a number of at least 0, but is inf"),
        ("top_k=-1", "top_k must be at least 0, but is -1"),
        ("top_p=0", "top_p must be above 0 and at most 1, but is 0.0"),
        ("top_p=1.1", "top_p must be above 0 and at most 1, but is 1.1"),
        ("top_p=nan", "top_p must be above 0 and at most 1, but is nan"),
        ("seed=-1", "seed must be in 0 to 2^63 - 1, but is -1"),
        (f"seed={2**63}", f"seed must be in 0 to 2^63 - 1, but is {2**63}"),
        ("batch_size=0", "batch_size must be at least 1, but is 0"),
        ("min_p=1.5", "min_p must be in 0 to 1, but is 1.5"),
        ("repetition_penalty=0", "repetition_penalty must be a number from 0.01 to 100, but is 0.0"),
        ("repetition_penalty=inf", "repetition_penalty must be a number from 0.01 to 100, but is inf"),
        ("chat=perhaps", "chat must be true or false, but is 'perhaps'"),
        ("stop=", "stop must be a string that is not empty, but is empty"),
        ("eos_ids=1;2", "eos_ids must be whole numbers with commas, but is '1;2'"),
        ("eos_ids=1,-2", "eos_ids must be at least 0, but are 1,-2"),
        ("output=answers.txt", "output must be the name of a .jsonl file, but is 'answers.txt'"),
        ("checkpoint=", "checkpoint must name a run folder or a checkpoint, but is empty"),
    ],
)
def test_a_wrong_value_is_named(word: str, problem: str) -> None:
    assert problems_of("checkpoint=x", word) == (problem,)


@pytest.mark.parametrize(
    "word", ["temperature=0", "top_p=1", "top_k=0", "seed=0", f"seed={2**63 - 1}", "max_tokens=0", "num_samples=1"]
)
def test_the_ends_of_the_ranges_are_in(word: str) -> None:
    parse(["checkpoint=x", word])


def test_all_problems_are_told_at_once() -> None:
    found = problems_of("promt=x", "stray", "max_tokens=x", "temperature=-1", "top_p=2", "top_k=-2")
    assert len(found) == 7
    for key in ("promt", "stray", "max_tokens", "temperature", "top_p", "top_k", "checkpoint"):
        assert any(key in problem for problem in found), key


def test_no_arguments_ask_for_a_checkpoint() -> None:
    assert problems_of() == ("checkpoint must name a run folder or a checkpoint, but is empty",)


def test_options_need_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, trainer.generation.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
