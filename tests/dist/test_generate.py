"""`trident generate` over the ranks of a layout: the texts of every layout are those of the plain forward pass."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers.apart import Ended, Rank, start_apart
from tests.helpers.generation import draws, model_of, stage_with, weights_of, write_run
from tests.helpers.tiny_models import TINY, TINY_LLAMA
from trainer.config.schema import ModelConfig
from trainer.data.tokenizer import ByteTokenizer
from trainer.exporting import export_verb
from trainer.oracle.reference import reference_logits

pytestmark = [pytest.mark.dist, pytest.mark.timeout(300)]

TOKENS = 64
PROMPTS = ("def ", "a prompt that is longer than the window", "x", "import os")
LAYOUTS = ("single", "tp2", "pp2", "tp2_pp2")
MODELS = {
    "gpt2": TINY,
    "windowed": replace(TINY_LLAMA, num_layers=3, num_attention_heads=8, num_key_value_heads=4, sliding_window=9),
}
LENGTH = 112


def generate(folder: Path, *ranks: Sequence[str]) -> Ended:
    """Run the command in ranks that were started apart, each with its own words."""
    here = ("runtime.device=cpu", "runtime.threads_per_rank=1")
    logs = folder / "tmp"
    logs.mkdir(exist_ok=True)

    def keep_logs_here() -> None:
        tempfile.tempdir = str(logs)

    each = [Rank((str(folder), *here, *words), verb="generate", before=keep_logs_here) for words in ranks]
    return start_apart(each, folder / "notes")


def written(folder: Path, layout: str, *words: str) -> list[dict[str, object]]:
    output = folder / f"{layout}.jsonl"
    size = {"single": 1, "tp2": 2, "pp2": 2, "tp2_pp2": 4}[layout]
    ended = generate(folder, *[(f"layout={layout}", f"output={output}", *words)] * size)
    assert ended.codes == [0] * size, ended.said
    assert list((folder / "tmp").iterdir()) == [], "logs of ranks that did well are left"
    return [json.loads(line) for line in output.read_text().splitlines()]


def plain(config: ModelConfig, prompt: str) -> list[int]:
    """Return the 64 tokens for which the oracle, without a cache and with this prompt alone, always has the best logit.

    They are drawn by our model, and held against one forward pass of the oracle over all of them: token by token it
    would say the same.
    """
    config, tokenizer = replace(config, seq_length=LENGTH), ByteTokenizer()
    weights = weights_of(model_of(config, tokenizer.vocab_size))
    ids = tokenizer.encode(prompt)
    (drawn,) = draws(stage_with(config, tokenizer.vocab_size, weights), [ids], TOKENS)
    logits = reference_logits(config, weights, torch.tensor([ids + drawn]))[0, len(ids) - 1 : -1]
    assert logits.argmax(dim=-1).tolist() == drawn
    first, second = logits.topk(2, dim=-1).values.unbind(dim=-1)
    # fp32 sums in another order differ by less than 1e-5 here.
    assert float((first - second).min()) > 1e-4, "a near tie would make this test a matter of luck"
    assert tokenizer.eos_id not in drawn
    return drawn


@pytest.mark.parametrize("name", MODELS)
def test_greedy_texts_of_every_layout_are_those_of_the_plain_forward_pass(name: str, tmp_path: Path) -> None:
    write_run(tmp_path, tp=2, model=MODELS[name], seq_length=LENGTH)
    expected = [ByteTokenizer().decode(plain(MODELS[name], prompt)) for prompt in PROMPTS]
    assert len(set("".join(expected))) > 3, "a model that says one word sees no mistake"
    words = ("temperature=0", f"max_tokens={TOKENS}", "batch_size=3", *(f"prompt={one}" for one in PROMPTS))
    for layout in LAYOUTS:
        found = written(tmp_path, layout, *words)
        assert [one["text"] for one in found] == expected, layout
        assert [(one["prompt"], one["tokens"], one["end"]) for one in found] == [(p, TOKENS, "length") for p in PROMPTS]


def test_drawn_texts_stops_and_penalties_are_the_same_in_every_layout(tmp_path: Path) -> None:
    write_run(tmp_path, model=MODELS["windowed"], seq_length=LENGTH)
    words = (
        *("temperature=1.5", "top_k=50", "min_p=0.01", "repetition_penalty=1.2", "seed=3", "num_samples=2"),
        *(
            "max_tokens=24",
            "batch_size=3",
            *(f"stop={letter}" for letter in "aeiounst"),
            *(f"prompt={one}" for one in PROMPTS),
        ),
    )
    first, *others = [written(tmp_path, layout, *words) for layout in LAYOUTS]
    assert export_verb([str(tmp_path), str(tmp_path / "exported"), "check=false"], "fp32") == 0
    others.append(written(tmp_path / "exported", "tp2_pp2", f"tokenizer={tmp_path / 'tokenizer'}", *words))
    assert {one["end"] for one in first} >= {"stop", "length"}
    assert len({str(one["text"]) for one in first}) > 4
    assert others == [first] * 4, "the last is a folder of transformers"


@pytest.mark.parametrize(
    ("words", "others", "line"),
    [
        (["layout=tp2", "seed=1"], ["layout=tp2", "seed=2"], "seed"),
        (["layout=tp2", "temperature=-1"], ["layout=tp2"], "temperature must be a number of at least 0"),
        (["layout=dp2"], ["layout=dp2"], "layout.data_parallel_size must be 1 to generate, but is 2"),
        (["layout=tp4"], ["layout=tp4"], "the number of ranks (2) must be divisible by"),
    ],
)
def test_ranks_that_disagree_or_do_not_fit_say_so_once(
    words: list[str], others: list[str], line: str, tmp_path: Path
) -> None:
    write_run(tmp_path)
    ended = generate(tmp_path, words, others)
    assert ended.codes == [2, 2], ended.said
    assert len(ended.errors) == 1, ended.said
    assert line in ended.errors[0]
    assert "Traceback" not in "".join(ended.said)
