from __future__ import annotations

from pathlib import Path

import pytest

from trainer.config.blend import OF_ALL, Blend, BlendPhase, BlendSource
from trainer.config.blend_sources import source_configs
from trainer.config.compose import compose, from_yaml, to_yaml
from trainer.config.keys import KEYS
from trainer.config.schema import DataSource
from trainer.config.validate import problems
from trainer.errors import ConfigError

WORDS = (
    "data.blend={web: {weight: 0.7, files: [web/*.jsonl, b.txt]}, code: {weight: 3, hub_path: a/code, text_key: body}}",
    "data.blend_schedule=[{at_tokens: 1000, weights: {web: 1, code: 0}}]",
)
BLEND = Blend(
    (
        BlendSource("web", 0.7, (("files", ("web/*.jsonl", "b.txt")),)),
        BlendSource("code", 3.0, (("hub_path", "a/code"), ("text_key", "body"))),
    )
)


def told(*words: str) -> list[str]:
    return problems(compose(["tokenizer=bytes", *words]))


def test_a_blend_is_the_same_from_words_from_a_file_and_from_a_runs_folder(tmp_path: Path) -> None:
    found = compose(WORDS)
    assert found.data.blend == BLEND
    assert found.data.blend_schedule == (BlendPhase(1000, (("web", 1.0), ("code", 0.0))),)
    assert from_yaml(to_yaml(found)) == found
    (tmp_path / "mine.yaml").write_text(
        "data:\n  blend:\n    web: {weight: 0.7, files: ['web/*.jsonl', b.txt]}\n"
        "    code: {weight: 3, hub_path: a/code, text_key: body}\n"
        "  blend_schedule: [{at_tokens: 1000, weights: {web: 1, code: 0}}]\n"
    )
    assert compose([f"config={tmp_path / 'mine.yaml'}"]).data == found.data
    assert compose([f"config={tmp_path / 'mine.yaml'}", "data.blend={}"]).data.blend == Blend()


def test_each_source_has_the_keys_of_data_and_its_own() -> None:
    config = compose([*WORDS, "data.text_key=content", "data.validation_fraction=0.1"])
    web, code = source_configs(config).values()
    assert [web.data.source, code.data.source] == [DataSource.files, DataSource.hub]
    assert [web.data.text_key, code.data.text_key] == ["content", "body"]
    assert web.data.validation_fraction == code.data.validation_fraction == 0.1
    assert (web.data.blend, web.data.blend_schedule) == (Blend(), ())
    assert source_configs(compose([])) == {}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("data.blend=3", "data.blend must be sources such as {web: {weight: 0.7, files: [web/*.jsonl]}}, but is 3"),
        ("data.blend.web.weight=0.3", "there is no key 'data.blend.web.weight'; did you mean 'data.blend'?"),
        ("data.blend={web: {files: [a]}}", "data.blend must give each source a weight, but web has none"),
        ("data.blend={web: 3}", "data.blend must give web keys such as {weight: 0.7, files: [...]}, but gives it 3"),
        (
            "data.blend={web: {weight: -1}}",
            "data.blend must have a weight of web that is a number of at least 0, but it is -1",
        ),
        (
            "data.blend={web: {weight: nan}}",
            "data.blend must have a weight of web that is a number of at least 0, but it is nan",
        ),
        ("data.blend={web: {weight: 1, file: [a]}}", "there is no key 'data.blend.web.file'; did you mean 'files'?"),
        (
            "data.blend={web: {weight: 1, max_documents: x}}",
            "data.blend.web.max_documents must be an integer, but is 'x'",
        ),
        (
            "data.blend={web: {weight: 1, cache_dir: x}}",
            "data.blend.web.cache_dir cannot be that of one source: all sources of a blend have one data.cache_dir",
        ),
        (
            "data.blend={1: {weight: 1}}",
            "data.blend must give sources names of letters, digits, _ and -, but one is '1'",
        ),
        (
            "data.blend_schedule=[{at: 3}]",
            "data.blend_schedule[0] must be such as {at_tokens: 1000000, weights: {web: 0.5, code: 0.5}}, but is "
            "{'at': 3}",
        ),
    ],
)
def test_what_is_no_blend_is_refused(word: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([word])
    assert caught.value.problems == (expected,)


def test_an_error_in_a_file_has_its_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("data:\n  max_documents: 3\n  blend:\n    web: {weight: 1, file: [x]}\n")
    with pytest.raises(ConfigError, match=r"mine.yaml:3: there is no key 'data.blend.web.file'; did you mean 'files'"):
        compose([f"config={tmp_path / 'mine.yaml'}"])


TWO = "data.blend={a: {weight: 1}, b: {weight: 2}}"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([TWO], []),
        (["data.blend={a: {weight: 0}, b: {weight: 0}}"], ["data.blend must have a weight above 0, but all are 0"]),
        (
            ["data.blend={a: {weight: 1, source: files}}"],
            ["data.blend.a.source=files needs data.blend.a.files; for example data.blend.a.files=[corpus/*.jsonl]"],
        ),
        (
            ["data.blend={a: {weight: 1, source: synthetic}}", "tokenizer=bytes"],
            [
                "data.blend.a.source=synthetic needs model.vocab_size, since its ids come without a tokenizer; for "
                "example model.vocab_size=2048"
            ],
        ),
        (
            ["data.blend={a: {weight: 1, validation_fraction: 2, max_documents: 0}}"],
            [
                "data.blend.a.max_documents must be at least 1, but is 0",
                "data.blend.a.validation_fraction must be at least 0 and less than 1, but is 2.0",
            ],
        ),
        (
            [
                "data.blend={a: {weight: 1, source: megatron, files: [x], dedup: exact}, b: {weight: 1}}",
                *("model.vocab_size=300", "data.on_bad_record=skip", "tokenizer.allow_unused_ids=true"),
            ],
            [
                "data.blend.a.dedup=exact has no effect with data.blend.a.source=megatron, whose ids come ready-made; "
                "leave it out"
            ],
        ),
        (
            ["data.blend={a: {weight: 1, test_fraction: 0.7}}", "data.validation_fraction=0.5"],
            [
                "data.blend.a.validation_fraction (0.5) + data.blend.a.test_fraction (0.7) must be less than 1, or "
                "nothing is left to train on"
            ],
        ),
        (
            [TWO, "data=files", "data.files=[x]"],
            ["data.files has no effect with data.blend, whose sources have keys of their own; move it there"],
        ),
        (
            [
                "data.blend={a: {weight: 1, files: [a]}, b: {weight: 1, source: megatron, files: [b]}}",
                "tokenizer=bpe",
                "model.vocab_size=500",
            ],
            [
                "tokenizer.kind=bpe would train a tokenizer on texts, but of data.blend b holds ids already; use "
                "tokenizer=pretrained with the tokenizer that made them"
            ],
        ),
        (
            ["data.blend_schedule=[{at_tokens: 5, weights: {b: 1}}]"],
            ["data.blend_schedule changes the weights of data.blend, which has no source; give it some"],
        ),
        (
            [TWO, "data.blend_schedule=[{at_tokens: 5, weights: {bb: 1}}, {at_tokens: 5, weights: {a: 0, b: 0}}]"],
            [
                "data.blend_schedule[0].weights must name sources of data.blend (a, b), but names bb",
                "data.blend_schedule[0].weights must name every source of data.blend; give a, b a weight, or 0",
                "data.blend_schedule[1].at_tokens (5) must be greater than 5, where the weights before begin",
                "data.blend_schedule[1].weights must have a weight above 0, but all are 0",
            ],
        ),
        (
            ["data=files", "data.files=[0.3, A, 0.7, B/c]"],
            [
                "data.files must hold paths and no weights; write data.blend={a: {weight: 0.3, files: [A]}, b: "
                "{weight: 0.7, files: [B/c]}}"
            ],
        ),
        (
            ["data.blend={a: {weight: 1, validation_fraction: 0}}", "train.eval_every=1"],
            [
                "train.eval_every=1 needs data.validation_fraction > 0, but it is 0; use data.validation_fraction=0.02,"
                " or train.eval_every=0"
            ],
        ),
        (
            ["data.blend={a: {weight: 1}}", "train.eval_every=1", "data.validation_fraction=0"],
            [
                "train.eval_every=1 needs data.validation_fraction > 0, but it is 0; use data.validation_fraction=0.02,"
                " or train.eval_every=0"
            ],
        ),
        (
            [
                "data.blend={a: {weight: 1}, b: {weight: 1, validation_fraction: 0.1}}",
                *("train.eval_every=1", "data.validation_fraction=0"),
            ],
            [],
        ),
    ],
)
def test_the_rules_of_blends(words: list[str], expected: list[str]) -> None:
    assert told(*words) == expected


def test_keys_that_all_sources_share_exist() -> None:
    assert KEYS.keys() > OF_ALL
