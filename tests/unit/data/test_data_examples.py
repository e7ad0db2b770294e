# ruff: noqa: E501 - messages are compared whole
"""Chats and prompts become sequences in which exactly the answers count."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.data.data_fixtures import config, told
from trainer.config.plan import make_plan
from trainer.config.schema import TridentConfig
from trainer.corpus.read import documents
from trainer.data.answers import Answered, answered
from trainer.data.batches import training_batches, validation_batches
from trainer.data.chat_template import PLAIN_TEMPLATE, ChatTemplate, chat_template
from trainer.data.examples import Example
from trainer.data.packing import BEGINS, Packer, labels_of
from trainer.data.prepare import look_up, prepare
from trainer.data.prepared import PreparedData, stream_identity
from trainer.data.tokenizer import FileTokenizer, load_tokenizer
from trainer.data.told import told_examples
from trainer.micro_batch import IGNORED, MicroBatch

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
)
"""It writes no line before an answer, so that the first render that ends before it could not tell where it begins."""
CHATS: list[list[tuple[str, str]]] = [
    [("user", "Is it blue?"), ("assistant", "Yes, blue.")],
    [
        ("system", "Be short."),
        ("user", "Two and two?"),
        ("assistant", "Four."),
        ("user", "Ünd?"),
        ("assistant", "Fünf!"),
    ],
    [("user", "Call it."), ("assistant", "  calling\n"), ("tool", '{"n": 3}'), ("assistant", "It is 3.")],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE with ChatML's special tokens, and its chat template."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    texts = [text for chat in CHATS for _, text in chat] * 5
    tokenizer.train_from_iterator([*texts, *["user\nassistant\nsystem\n"] * 9], trainer)
    path = tmp_path_factory.mktemp("tokenizer")
    (path / "tokenizer.json").write_text(tokenizer.to_str())
    settings = {"eos_token": "<|im_end|>", "bos_token": None, "chat_template": CHATML}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


def written(path: Path, records: Sequence[object]) -> Path:
    path.write_text("".join(f"{json.dumps(one)}\n" for one in records), encoding="utf-8")
    return path


def chats(path: Path, records: Sequence[Sequence[tuple[str, str]]] = CHATS, key: str = "messages") -> Path:
    turns = [{key: [{"role": role, "content": text} for role, text in chat]} for chat in records]
    return written(path / "chats.jsonl", turns)


def of_chats(tmp_path: Path, folder: Path, *files: Path, **values: object) -> TridentConfig:
    keys = {
        "data__source": "files",
        "data__records": "messages",
        "data__files": [str(one) for one in files],
        "data__cache_dir": str(tmp_path / "cache"),
        "data__validation_fraction": 0.0,
        "tokenizer__kind": "pretrained",
        "tokenizer__path": str(folder),
        "model__seq_length": 64,
        "batch__global_batch_size": 1,
    }
    return config(**{**keys, **values})


def batches(found: TridentConfig, prepared: PreparedData, dp_rank: int = 0) -> list[MicroBatch]:
    plan = make_plan(found, prepared.vocab_size)
    length = found.model.seq_length
    source = training_batches(prepared, plan, length, dp_rank, torch.device("cpu"))
    return source.micro_batches(0, 1)


def learned(batch: MicroBatch) -> list[list[int]]:
    """Return the runs of labels that count."""
    found: list[list[int]] = [[]]
    for row in batch.targets().tolist():
        for label in [*row, IGNORED]:
            if label != IGNORED:
                found[-1].append(label)
            elif found[-1]:
                found.append([])
    return found[:-1]


@pytest.mark.parametrize("template", [CHATML, MARKED, PLAIN_TEMPLATE])
def test_what_counts_is_exactly_the_answers_and_their_end(tmp_path: Path, folder: Path, template: str) -> None:
    import tokenizers

    (tmp_path / "t.jinja").write_text(template)
    found = of_chats(tmp_path, folder, chats(tmp_path), data__chat_template=str(tmp_path / "t.jinja"))
    prepared = prepare(found)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    batch = all_rows(found, prepared)
    answers = [f"{text}<|im_end|>" for chat in CHATS for role, text in chat if role == "assistant"]
    assert sorted(theirs.decode(run, skip_special_tokens=False) for run in learned(batch)) == sorted(answers)
    # The run keeps the template with which `trident generate` writes what comes before an answer.
    assert prepared.tokenizer_folder is not None
    kept = chat_template(load_tokenizer(prepared.tokenizer_folder).read)
    assert kept is not None
    assert kept.source == template


def all_rows(found: TridentConfig, prepared: PreparedData) -> MicroBatch:
    rows = prepared.train_tokens // found.model.seq_length
    whole = replace(found, batch=replace(found.batch, global_batch_size=rows, micro_batch_size=rows))
    (batch,) = batches(whole, prepared)
    return batch


def test_tokens_are_those_of_transformers_and_each_example_is_whole(tmp_path: Path, folder: Path) -> None:
    import tokenizers

    found = of_chats(tmp_path, folder, chats(tmp_path))
    batch = all_rows(found, prepare(found))
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    template = ChatTemplate(CHATML, {}, "x")
    texts = [template.whole([{"role": role, "content": text} for role, text in chat]) for chat in CHATS]
    expected = [theirs.encode(text, add_special_tokens=False).ids for text in texts]
    assert batch.documents is not None
    documents = [
        ids[numbers == number].tolist()
        for ids, numbers in zip(batch.input_ids, batch.documents.numbers, strict=True)
        for number in numbers.unique()
    ]
    for ids in expected:
        assert ids in documents
    padding = [one for one in documents if one not in expected]
    assert all(set(one) == {theirs.token_to_id("<|im_end|>")} for one in padding)
    assert int(batch.positions.max()) < max(map(len, [*expected, *padding]))


def test_prompts_and_completions(tmp_path: Path) -> None:
    rows = [{"q": "1+1=", "a": "2"}, {"q": "", "a": "alone"}, {"q": "ä", "a": "ö"}]
    path = written(tmp_path / "x.jsonl", rows)
    keys: dict[str, object] = {
        "data__source": "files", "data__files": [str(path)], "data__records": "prompt_completion",
        "data__prompt_key": "q", "data__completion_key": "a", "data__cache_dir": str(tmp_path / "cache"),
        "data__validation_fraction": 0.0, "tokenizer__kind": "bytes", "model__seq_length": 12,
        "batch__global_batch_size": 1,
    }  # fmt: skip
    found = config(**keys)
    batch = all_rows(found, prepare(found))
    # The first token of a text has nothing before it.
    expected = [[*b"2", 256], [*b"lone", 256], [*"ö".encode(), 256]]
    assert sorted(learned(batch)) == sorted(expected)


def test_examples_that_are_too_long(tmp_path: Path, folder: Path) -> None:
    long = [("user", "x"), ("assistant", "word " * 60)]
    late = [("user", "word " * 60), ("assistant", "y")]
    path = chats(tmp_path, [*CHATS, long, late])
    text = told(lambda: prepare(of_chats(tmp_path, folder, path)))
    assert text.startswith(
        "each example must have at most model.seq_length (64) tokens, but 2 of 5 have more, the first is line 4 of "
    )
    assert text.endswith("; set data.too_long=drop or truncate, or raise model.seq_length")
    assert look_up(of_chats(tmp_path, folder, path))[1] is None
    dropped, cut = (of_chats(tmp_path, folder, path, data__too_long=word) for word in ("drop", "truncate"))
    facts = [prepare(one).packed for one in (dropped, cut)]
    assert [(one.examples, one.dropped, one.truncated, one.emptied) for one in facts if one] == [
        (3, 2, 0, 0),
        (4, 0, 2, 1),
    ]
    line = told_examples(prepare(cut), cut)
    assert line is not None
    assert "; 2 longer ones lost their end (data.too_long=truncate); 1 of which no answer is left are left out" in line
    assert "; 2 longer ones are left out (data.too_long=drop)" in str(told_examples(prepare(dropped), dropped))


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        ([{"messages": [{"role": "bot", "content": "x"}]}], "role of message 1 of line 1 of {} must be system, user, assistant or tool, but is 'bot'"),
        ([{"messages": [{"from": "human", "value": "x"}]}], "message 1 of line 1 of {} must be an object with role and content, but has the keys from, value"),
        ([{"messages": ["x"]}], "message 1 of line 1 of {} must be an object with role and content, but is str"),
        ([{"messages": []}], "line 1 of {} must have a list of messages in data.messages_key=messages, but is empty there"),
        ([{"chat": []}], "line 1 of {} must have a list of messages in data.messages_key=messages, but has the keys chat"),
        ([{"messages": [{"role": "user", "content": "x"}]}], "line 1 of {} must have a message with role assistant, from which the model learns"),
        ([{"messages": [{"role": "user", "content": 3}]}], "content of message 1 of line 1 of {} must be a text, but is int"),
        (["x"], "line 1 of {} must be an object, but is str"),
    ],
)  # fmt: skip
def test_what_is_no_chat(tmp_path: Path, folder: Path, records: list[object], problem: str) -> None:
    path = written(tmp_path / "x.jsonl", records)
    assert told(lambda: prepare(of_chats(tmp_path, folder, path))) == problem.format(path)


def test_templates_that_cannot_be_used(tmp_path: Path, folder: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    (bare / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    path = chats(tmp_path)
    assert told(lambda: prepare(of_chats(tmp_path, bare, path))) == (
        "data.records=messages needs a tokenizer with a chat template, but this one has none (chat_template in "
        "tokenizer_config.json, or chat_template.jinja); set data.chat_template to a file with one, or to plain"
    )
    prepare(of_chats(tmp_path, bare, path, data__chat_template="plain"))
    forgets = tmp_path / "forgets.jinja"
    # As some do with what a model thought: only the last answer is written whole.
    forgets.write_text("{% for m in messages %}{{ m['role'] + (m['content'] if loop.last else '.') }}{% endfor %}")
    text = told(lambda: prepare(of_chats(tmp_path, folder, path, data__chat_template=str(forgets))))
    assert (
        f"the chat template in data.chat_template={forgets} must write an answer behind what it writes before" in text
    )
    assert told(lambda: prepare(of_chats(tmp_path, folder, path, data__chat_template="nowhere"))) == (
        "data.chat_template must be plain or a file that can be read, but nowhere: [Errno 2] No such file or directory: "
        "'nowhere'"
    )


def test_parquet_gzip_and_text_files(tmp_path: Path, folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = chats(tmp_path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    zipped = tmp_path / "x.jsonl.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    contents = {prepare(of_chats(tmp_path, folder, one)).content for one in (path, tmp_path / "x.parquet", zipped)}
    assert len(contents) == 1
    text = tmp_path / "x.txt"
    text.write_text("x")
    assert told(lambda: prepare(of_chats(tmp_path, folder, text))) == (
        f"data.files must hold objects for data.records=messages, as .jsonl and .parquet do, but {text} is text"
    )
    assert told(lambda: prepare(of_chats(tmp_path, folder, tmp_path / "x.parquet", data__messages_key="m"))) == (
        f"{tmp_path / 'x.parquet'} must have the column data.messages_key=m, but has messages"
    )


def test_chats_are_no_documents(tmp_path: Path, folder: Path) -> None:
    found = of_chats(tmp_path, folder, chats(tmp_path))
    assert told(lambda: next(documents(found.data))) == (
        "data.records must be text where documents are read, but is messages"
    )


def test_sequences_are_the_same_in_every_layout_and_change_with_what_decides_them(tmp_path: Path, folder: Path) -> None:
    path = chats(tmp_path, [[("user", f"n{n}?"), ("assistant", f"{n}!" * (1 + n % 7))] for n in range(60)])
    common: dict[str, object] = {
        "data__validation_fraction": 0.2,
        "batch__global_batch_size": 4,
        "model__seq_length": 48,
    }
    found = of_chats(tmp_path, folder, path, **common)
    prepared = prepare(found)
    assert prepared.validation_tokens >= 48
    one = batches(found, prepared)
    two = of_chats(tmp_path, folder, path, **common, layout__data_parallel_size=2, batch__micro_batch_size=2)
    by_rank = [batches(two, prepared, rank)[0] for rank in (0, 1)]
    for name in ("input_ids", "labels", "positions"):
        assert torch.equal(torch.cat([getattr(b, name) for b in one]), torch.cat([getattr(b, name) for b in by_rank]))
    lengths = [[row for b in each for row in (b.documents.lengths if b.documents else ())] for each in (one, by_rank)]
    assert lengths[0] == lengths[1] != []
    plan = make_plan(found, prepared.vocab_size, 1)
    held_out = validation_batches(prepared, plan, 0, torch.device("cpu"))[0].batches.micro_batches(0)
    assert all(batch.documents is not None and float(batch.counted()) > 0 for batch in held_out)
    other = of_chats(tmp_path, folder, path, **{**common, "model__seq_length": 56})
    assert stream_identity(prepare(other), other) != stream_identity(prepared, found)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    (changed / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": MARKED}))
    again = of_chats(tmp_path, changed, path, **common)
    assert prepare(again).content != prepared.content
    (changed / "tokenizer_config.json").write_text(json.dumps(settings))
    assert prepare(again).content == prepared.content


def test_a_token_that_reaches_over_the_beginning_of_an_answer_is_divided(folder: Path) -> None:
    tokenizer = FileTokenizer((folder / "tokenizer.json").read_text(), "x", "<|im_end|>")
    # As one text " blue" may be one token.
    text = "Is it blue?"
    (found,) = answered(tokenizer, [Example("line 1", text, ((6, 10),), ends=False, may_trim=False)])
    assert tokenizer.decode([i for i, counts in zip(found.ids, found.counted, strict=True) if counts]) == "blue"
    assert tokenizer.decode(found.ids) == text

    class Spaced(FileTokenizer):
        """Puts a space before each text, as sentencepiece's do."""

        def encode_batch(self, texts: list[str]) -> list[list[int]]:
            return super().encode_batch([f" {text}" for text in texts])

    spaced = Spaced((folder / "tokenizer.json").read_text(), "x", "<|im_end|>")
    assert told(lambda: answered(spaced, [Example("line 1", text, ((6, 10),), ends=False, may_trim=False)])) == (
        "line 1: the beginning and the end of an answer must be those of tokens, but this tokenizer joins them with "
        "what stands around; use a chat template that puts special tokens there"
    )


def test_packing_fills_sequences_and_divides_no_example() -> None:
    sizes = np.random.default_rng(5).integers(1, 17, size=300).tolist()
    packer, rows = Packer(16, filler=0), []
    for number, size in enumerate(sizes, start=1):
        rows += list(packer.add(Answered([number] * size, [True] * size)))
    rows += list(packer.rest())
    assert sum(sizes) / (16 * len(rows)) > 0.96
    seen: list[int] = []
    for ids, marks in rows:
        documents, labels = ((marks & BEGINS) > 0).cumsum(), labels_of(ids, marks, IGNORED)
        for document in np.unique(documents):
            here = ids[documents == document]
            assert len(set(here.tolist())) == 1
            number, size = int(here[0]), len(here)
            if number:
                assert size == sizes[number - 1]
                seen.append(number)
            expected = [number] * (size - 1) if number else [IGNORED] * (size - 1)
            assert labels[documents == document].tolist() == [*expected, IGNORED]
    assert sorted(seen) == list(range(1, 301))
    with pytest.raises(ValueError, match="an example must have 1 to 16 tokens, but has 17"):
        list(packer.add(Answered([1] * 17, [True] * 17)))
