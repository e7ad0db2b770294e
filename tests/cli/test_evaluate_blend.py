"""A blend with a tokenizer of its own, from its first step to the scores of its sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.helpers import command
from trainer.data.split import TEST_PART, TRAIN_PART, VALIDATION_PART, Fractions
from trainer.errors import ConfigError
from trainer.evaluation.asked import settle
from trainer.evaluation.documents import read_documents
from trainer.evaluation.evaluate_options import EvaluateOptions, parse
from trainer.metrics.jsonl import read_rows

TEXTS = {
    "web": [f"The quick brown fox number {number} jumps over {number * 7} lazy dogs." for number in range(60)],
    "code": [f"def read_{number}(self): return self.values[{number}]" for number in range(60)],
    "rest": [f"{number} bottles of beer on the wall, and {number} more." for number in range(20)],
}
BLEND = (
    "data.blend={web: {weight: 3, files: [web.jsonl]}, code: {weight: 1, files: [code.jsonl]}, "
    "rest: {weight: 1, files: [rest.jsonl], validation_fraction: 0}}"
)
TINY = (
    *("model.hidden_size=16", "model.num_layers=2", "model.num_attention_heads=2", "model.seq_length=16"),
    *("train.steps=3", "train.eval_every=3", "train.eval_batches=1", "batch.global_batch_size=4"),
    *("data.validation_fraction=0.2", "data.test_fraction=0.3", "tokenizer.vocab_size=300", "runtime.device=cpu"),
    *("logging.wandb=disabled", "launch.max_restarts=0"),
)


@pytest.fixture
def run(place: Path) -> Path:
    """A run of three steps with a blend and the default tokenizer, in a process whose output it may send to a log."""
    for name, texts in TEXTS.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    trained = command.run(command.trident("train", BLEND, *TINY, "run_dir=run"), place)
    assert trained.code == 0, trained.err
    return place / "run"


def test_a_blend_is_trained_and_scored_source_by_source(trident: Run, run: Path, place: Path) -> None:
    last = list(read_rows(run / "metrics.jsonl"))[-1]
    assert last["eval/loss"] == pytest.approx((3 * last["eval/loss/web"] + last["eval/loss/code"]) / 4, abs=1e-6)
    assert json.loads((run / "tokenizer" / "tokenizer.json").read_text())["model"]["type"] == "BPE"

    def scored(*words: str) -> tuple[dict[str, Any], str]:
        answer = trident("evaluate", "run", "output=scores.json", "runtime.device=cpu", *words)
        assert answer.code == 0, answer.err
        return json.loads((place / "scores.json").read_text()), answer.out

    def documents(name: str, part: int, fractions: Fractions) -> int:
        return sum(fractions.part_of(text.encode()) == part for text in TEXTS[name])

    both = Fractions(0.2, 0.3)
    found, said = scored()
    numbers, sources = found["scores"], found["data"]["sources"]
    assert [(one["source"], one["weight"], one["documents"]) for one in sources] == [
        ("data.blend.web", 3.0, documents("web", VALIDATION_PART, both)),
        ("data.blend.code", 1.0, documents("code", VALIDATION_PART, both)),
    ]
    web, code = (numbers[f"eval/loss/{name}"] for name in ("web", "code"))
    assert numbers["eval/loss"] == pytest.approx((3 * web + code) / 4, rel=1e-12)
    # Bits and bytes of a text of which a source has as many tokens as its weight says.
    sizes = [one["bytes"] / one["tokens"] for one in sources]
    bits = [numbers[f"eval/bits_per_byte/{name}"] for name in ("web", "code")]
    shares = [3 * sizes[0] / (3 * sizes[0] + sizes[1]), sizes[1] / (3 * sizes[0] + sizes[1])]
    assert numbers["eval/bits_per_byte"] == pytest.approx(sum(map(float.__mul__, bits, shares)), rel=1e-12)
    assert said.count("nats a token, perplexity") == 3
    assert "data    data.blend.code: " in said
    assert "data    the mean by the weights of data.blend\n" in said

    alone, said = scored("sources=code")
    assert alone["scores"]["eval/loss"] == alone["scores"]["eval/loss/code"] == code
    assert said.count("nats a token, perplexity") == 1
    files = ("data.source=files", "data.files=[code.jsonl]", "data.validation_fraction=0.2", "part=validation")
    assert scored(*files)[0]["scores"]["eval/loss"] == code, "as if it were the only source"

    tested = scored("part=test", "sources=web,rest")[0]["data"]["sources"]
    assert [one["documents"] for one in tested] == [
        documents("web", TEST_PART, both),
        documents("rest", TEST_PART, Fractions(0.0, 0.3)),
    ]

    def parts(part: str) -> list[tuple[str, int]]:
        asked = settle(EvaluateOptions("run", part=part)).data
        return [(one.source, len(list(read_documents(one.config, one.tokenizer, one.part_number)))) for one in asked]

    assert parts("train") == [
        *((name, documents(name, TRAIN_PART, both)) for name in ("web", "code")),
        ("rest", documents("rest", TRAIN_PART, Fractions(0.0, 0.3))),
    ]
    assert parts("all") == [("web", 60), ("code", 60), ("rest", 20)]

    for words, problems in (
        (["sources=wbe"], ["sources must name sources of data.blend (web, code, rest), but names wbe"]),
        (
            ["sources=web,rest"],
            ["part=validation needs data.blend.rest.validation_fraction above 0, but it is 0; use part=all"],
        ),
        (
            ["part=test", "data.test_fraction=0"],
            [f"part=test needs data.blend.{name}.test_fraction above 0, but it is 0; use part=all" for name in TEXTS],
        ),
        (["sources=web", *files], ["sources has no effect on data without data.blend; leave it out"]),
        (["part=test", *files[:-1]], ["part=test needs data.test_fraction above 0, but it is 0; use part=all"]),
        (
            ["data.files=[web.jsonl]"],
            ["data.files has no effect with data.blend, whose sources have keys of their own"],
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            settle(parse(["run", *words]))
        assert len(caught.value.problems) == len(problems), caught.value.problems
        for told, expected in zip(caught.value.problems, problems, strict=True):
            assert told.startswith(expected)
