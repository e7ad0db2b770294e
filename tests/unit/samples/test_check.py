from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.shards import unread
from trainer.config.schema import EvalConfig, ModelConfig, TridentConfig
from trainer.data.prepared import PreparedData
from trainer.data.tokenizer import ByteTokenizer
from trainer.errors import ConfigError
from trainer.samples import check
from trainer.samples.check import check_samples

CONFIG = TridentConfig(model=ModelConfig(seq_length=16), eval=EvalConfig(samples=1, prompts=("",), max_tokens=15))


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedData:
    ByteTokenizer().save(tmp_path)
    return unread(tmp_path, 257, tokenizer_folder=tmp_path)


def test_what_fits_is_fine(prepared: PreparedData) -> None:
    check_samples(prepared, CONFIG)
    check_samples(prepared, replace(CONFIG, eval=EvalConfig(samples=2, prompts=("abcd", "x" * 8), max_tokens=8)))


def test_prompts_and_texts_that_do_not_fit_are_told_all(prepared: PreparedData) -> None:
    texts = EvalConfig(samples=1, prompts=("abcd", "ab", "x" * 20), max_tokens=14)
    with pytest.raises(ConfigError) as caught:
        check_samples(prepared, replace(CONFIG, eval=texts))
    assert list(caught.value.problems) == [
        "eval.prompts[0] (4 tokens) and eval.max_tokens (14) must fit into model.seq_length (16); shorten one of them",
        "eval.prompts[2] (20 tokens) and eval.max_tokens (14) must fit into model.seq_length (16); shorten one of them",
    ]


def test_a_model_that_is_too_large_is_refused(prepared: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    check_samples(prepared, replace(CONFIG, model=ModelConfig(hidden_size=1024, num_layers=24, seq_length=16)))
    large = replace(CONFIG, model=ModelConfig(hidden_size=4096, num_layers=32, seq_length=16))
    with pytest.raises(
        ConfigError, match=r"at most 1,000,000,000 parameters, .*, but this one has 6,4\d\d,\d\d\d,\d\d\d"
    ):
        check_samples(prepared, large)
    # Who writes no texts needs no such memory, and not even a tokenizer.
    check_samples(replace(prepared, tokenizer_folder=None), replace(large, eval=EvalConfig()))
    assert check.MAX_PARAMETERS == 10**9
