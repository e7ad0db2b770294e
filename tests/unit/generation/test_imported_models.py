"""Models that were trained elsewhere: a prompt has the tokens with which they were trained, and ends where they end."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import tokenizers
from tokenizers.processors import TemplateProcessing

from tests.helpers.generation import model_of, texts, weights_of, write_run
from tests.helpers.shards import unread
from tests.helpers.tiny_models import TINY_LLAMA
from trainer.config.plan import make_plan
from trainer.config.schema import EvalConfig, TridentConfig
from trainer.data.tokenizer import FileTokenizer, train_bpe
from trainer.engine.face import Engine
from trainer.errors import ConfigError
from trainer.exporting import export_verb
from trainer.generation.generate import written
from trainer.generation.options import GenerateOptions
from trainer.generation.task import Task, settle
from trainer.generation.text import Ends, Text
from trainer.run_paths import HUGGING_FACE
from trainer.samples.check import check_samples
from trainer.topology.groups import single_process_groups

BEGIN, END, PROMPT = "<s>", "</s>", "the cat"
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
TEXT = ["the cat sat on the mat"] * 5
STEP = Path("run", "checkpoints", "step_5")


def llama_like() -> FileTokenizer:
    """A tokenizer that begins texts with a token, as the post-processors of Llama and Gemma do."""
    made = tokenizers.Tokenizer.from_str(train_bpe(TEXT, 270)._tokenizer.to_str())
    made.add_special_tokens([BEGIN, END])
    begin = made.token_to_id(BEGIN)
    made.post_processor = TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, begin)])
    files = {"tokenizer_config.json": {"bos_token": BEGIN, "eos_token": END, "chat_template": TEMPLATE}}
    return FileTokenizer(
        made.to_str(), "the test's", read=lambda name: json.dumps(files[name]) if name in files else None
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of Trident's own, and what export makes of it."""
    place = tmp_path_factory.mktemp("imported")
    write_run(place / "run", model=TINY_LLAMA, tokenizer=llama_like())
    assert export_verb([str(place / "run"), str(place / "exported"), "check=false"], "fp32") == 0
    (place / "exported" / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "mine")
    return tmp_path / "mine"


def asked(path: Path | str, **options: object) -> Task:
    return settle(GenerateOptions(str(path), **{"prompt": (PROMPT,), **options}))  # type: ignore[arg-type]


def ids(task: Task) -> list[int]:
    return list(task.beginnings[0].ids)


def begun_from_exported(place: Path) -> Path:
    """Return the run as one that was trained on from the exported weights."""
    shutil.copytree(
        place / "exported",
        place / STEP / HUGGING_FACE,
        ignore=lambda _, names: [n for n in names if n.endswith("tensors")],
    )
    return place / "run"


@pytest.mark.parametrize("name", ["folder", "hub", "trained on"])
def test_a_prompt_of_an_imported_model_has_the_tokens_that_transformers_gives_it(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(place / "exported"))
    sources = {"folder": str(place / "exported"), "hub": "owner/name", "trained on": str(place / "run")}
    source = sources[name]
    if name == "trained on":
        begun_from_exported(place)
    theirs = tokenizers.Tokenizer.from_file(str(place / "exported" / "tokenizer.json"))
    assert ids(asked(source)) == theirs.encode(PROMPT).ids
    assert ids(asked(source, prompt=())) == [theirs.token_to_id(BEGIN)]
    # A template writes them itself.
    assert ids(asked(source, chat=True)) == theirs.encode(PROMPT).ids
    assert asked(source).ends.tokens == {theirs.token_to_id(END), 7, 9}
    assert asked(source, eos_ids=(3,)).ends.tokens == {3}


def test_a_run_that_began_here_has_none(place: Path) -> None:
    tokenizer = llama_like()
    assert ids(asked(place / "run")) == tokenizer.encode(PROMPT)
    assert ids(asked(place / "run", prompt=())) == [tokenizer.eos_id]
    assert asked(place / "run").ends.tokens == {tokenizer.eos_id}


def other_tokenizer(run: Path) -> Path:
    train_bpe(TEXT, 262).save(run.parent / STEP / HUGGING_FACE)
    return run


def test_files_of_another_tokenizer_say_nothing_of_this_one(place: Path) -> None:
    run = other_tokenizer(begun_from_exported(place))
    tokenizer = llama_like()
    assert ids(asked(run)) == tokenizer.encode(PROMPT)
    assert asked(run).ends.tokens == {tokenizer.eos_id}


def test_without_a_generation_config_the_ends_are_those_of_the_config(place: Path) -> None:
    (place / "exported" / "generation_config.json").unlink()
    config = json.loads((place / "exported" / "config.json").read_text())
    (place / "exported" / "config.json").write_text(json.dumps({**config, "eos_token_id": [4, 5]}))
    assert {4, 5} < set(asked(begun_from_exported(place)).ends.tokens)


def test_a_text_is_shown_without_the_tokens_before_it(place: Path) -> None:
    (text,) = texts(place / "exported", PROMPT, max_tokens=4)
    assert text.startswith(PROMPT)
    assert BEGIN not in text


def test_a_folder_whose_model_cannot_be_computed_is_told_in_one_line(place: Path) -> None:
    path = place / "exported" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_attention_heads": 3}))
    with pytest.raises(ConfigError) as caught:
        asked(place / "exported")
    (line,) = caught.value.problems
    assert line.startswith(f"{path}: hidden_size (16) must be divisible by num_attention_heads (3)")


def test_texts_while_a_run_trains_are_those_of_its_checkpoint(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.samples import samples_hook

    seen: list[tuple[list[int], set[int]]] = []

    def spied(decoder: Any, beginnings: Any, tokenizer: Any, ends: Ends, batch_size: int) -> list[Text]:
        seen.append((list(beginnings[0].ids), set(ends.tokens)))
        return written(decoder, beginnings, tokenizer, ends, batch_size)

    monkeypatch.setattr(samples_hook, "written", spied)
    model = replace(TINY_LLAMA, seq_length=24)
    config = TridentConfig(model=model, eval=EvalConfig(samples=1, prompts=(PROMPT,), max_tokens=3))
    tokenizer, here = llama_like(), single_process_groups()
    weights = weights_of(model_of(model, tokenizer.vocab_size))
    for kept in (place / "exported", place / "nowhere"):
        plan = make_plan(config, tokenizer.vocab_size)
        hook = samples_hook.SamplesHook(cast(Engine, None), plan, place / "run" / "tokenizer", kept, here, print)
        hook._write(1, weights)
    begin, end = tokenizer.encode(BEGIN)[0], tokenizer.eos_id
    assert seen == [
        ([begin, *tokenizer.encode(PROMPT)], {end, 7, 9}),
        (tokenizer.encode(PROMPT), {end}),
    ]
    full = replace(config, eval=replace(config.eval, max_tokens=24 - len(tokenizer.encode(PROMPT))))
    prepared = unread(place, tokenizer.vocab_size, tokenizer_folder=place / "run" / "tokenizer")
    check_samples(prepared, full)
    with pytest.raises(ConfigError, match=r"must fit into model.seq_length \(24\)"):
        check_samples(prepared, full, may_be_imported=True)
