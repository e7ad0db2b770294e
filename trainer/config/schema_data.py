"""The part of the config schema that says what the model reads. Part of `schema.py`.

A string literal under a field is its documentation: meaning, unit, range, what it interacts with.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from trainer.config.blend import ONE_SOURCE, Blend, BlendPhase


class DataSource(Enum):
    """Source of the training text."""

    stdlib = "stdlib"
    files = "files"
    hub = "hub"
    megatron = "megatron"
    tokens = "tokens"
    synthetic = "synthetic"


ID_FILES = (DataSource.megatron, DataSource.tokens)
"""Sources of token ids that somebody made before, with a tokenizer that need not be here."""


class TokenDtype(Enum):
    """Type of the ids in a file, little endian."""

    uint8 = "uint8"
    uint16 = "uint16"
    uint32 = "uint32"
    uint64 = "uint64"
    int16 = "int16"
    int32 = "int32"
    int64 = "int64"


class RecordKind(Enum):
    """Form of a record of the data, and the tokens of it that count.

    `text`: a document, all of it; `messages`: a chat, the answers in it; `prompt_completion`: a prompt and its
    completion, the completion.
    """

    text = "text"
    messages = "messages"
    prompt_completion = "prompt_completion"


class BoundaryLabel(Enum):
    """Treatment of the label of a document's last token, the first token of the next one."""

    keep = "keep"
    ignore = "ignore"


class TooLong(Enum):
    """Answer to an example that is longer than a sequence."""

    error = "error"
    drop = "drop"
    truncate = "truncate"


class OnBadRecord(Enum):
    """Answer to a record that cannot be read, or is not of the form that it must have."""

    error = "error"
    skip = "skip"


class Dedup(Enum):
    """Removal of documents that are there more than once."""

    none = "none"
    exact = "exact"


class Packing(Enum):
    """Way in which documents of text become sequences.

    `cut`: one stream of tokens, cut every model.seq_length. `best_fit`: documents side by side, the longest first and
    each into the fullest sequence that it fits into; none that fits is cut, and what is left of a sequence is padding.
    """

    cut = "cut"
    best_fit = "best_fit"


class OnChange(Enum):
    """Answer to data, or weights of a blend, that are not those that the run in the folder began with."""

    error = "error"
    go_on = "continue"


@dataclass(frozen=True)
class DataConfig:
    """The data that the model reads."""

    source: DataSource = DataSource.stdlib
    """stdlib | files | hub | megatron | tokens | synthetic."""
    files: tuple[str, ...] = ()
    """files: paths, globs, folders and addresses (https://, s3://, hf://) of .txt, .json, .jsonl, .ndjson, .csv, .tsv,
    .parquet, .arrow and .tar, plain or with .gz, .zst, .bz2 or .xz behind it (docs/data.md). Of a folder all such files
    below it are read. megatron: prefixes of .bin/.idx pairs. tokens: files of ids, folders of them, and globs
    (docs/token_files.md)."""
    records: RecordKind = RecordKind.text
    """text | messages | prompt_completion: form of the records of jsonl, parquet and hub. text: documents, one stream
    of tokens that all count. messages: chats, of which only the answers count (role assistant, to the token that ends
    them). prompt_completion: two texts, of which only the second counts. Chats and prompts are examples: several share
    a sequence, but none attends to another one, and none is divided (docs/fine_tuning.md)."""
    text_key: str = "text"
    """files that hold records, hub: name of the field that holds the text, or a path to it as meta.text. A field whose
    name has the dot in it wins."""
    text_join: str | None = None
    """records=text: text that joins the items where the field holds a list of texts, or the path goes through a list,
    as messages.content does. \\n and \\t stand for a line's end and a tab. null: a list is refused."""
    document_separator: str | None = None
    """source=files: text that stands between the documents of a .txt file; it is no part of them. \\n and \\t stand for
    a line's end and a tab. null: a file is a document."""
    messages_key: str = "messages"
    """records=messages: name of the field that holds the list of messages, objects with role and content."""
    prompt_key: str = "prompt"
    """records=prompt_completion: name of the field that holds the prompt."""
    completion_key: str = "completion"
    """records=prompt_completion: name of the field that holds the completion."""
    chat_template: str | None = None
    """records=messages: the Jinja template that makes a text of a chat: a file, or plain, which is written in
    docs/fine_tuning.md. null: that of the tokenizer, which must have one. `trident generate` takes it from the run."""
    too_long: TooLong = TooLong.error
    """error | drop | truncate: treatment of an example with more tokens than model.seq_length. drop leaves it out,
    truncate its end; both are counted and told."""
    hub_path: str | None = None
    """hub: name of a Hugging Face data set, or a local `save_to_disk` folder."""
    hub_name: str | None = None
    """hub: configuration (subset) of the data set."""
    hub_split: str = "train"
    """hub: split to read, or several as train+test, or parts of them as train[:1000] or train[10%:20%]."""
    hub_download: bool = False
    """hub: true downloads the files of the split to the cache of Hugging Face (HF_HOME) before its first row is read,
    so that a connection which breaks off loses nothing; false reads rows as they arrive, and keeps no copy."""
    blend: Blend = ONE_SOURCE
    """Sources that are read side by side, each with a weight and keys of data of its own, as {web: {weight: 0.7, files:
    [web/*.jsonl]}, code: {weight: 0.3, hub_path: code}}; a key that a source does not have is that of data. Each is
    prepared, read in epochs and evaluated (eval/loss/NAME) on its own. Over any part of the run from its beginning each
    has had its share of the samples, to one sample. {}: data is the only source (docs/data.md)."""
    blend_schedule: tuple[BlendPhase, ...] = ()
    """Weights of the sources of data.blend from a token of the run on, as [{at_tokens: 1000000, weights: {web: 0.5,
    code: 0.5}}], in order; each entry names all sources. []: the weights of data.blend hold to the end."""
    on_change: OnChange = OnChange.error
    """error | continue: answer to other data, or other weights, than those that the run in run_dir began with. With
    continue it reads them from the place that it has reached: what is left of the epochs under way and what was
    appended to a source first, then whole epochs (docs/data.md)."""
    max_epochs: float | None = None
    """Largest number of times that the run may read a source; one that it would read more often is refused at the
    start. null: sources are read again and again, which the start says."""
    hub_validation_split: str | None = None
    """hub: split to evaluate with. null: a share of hub_split is held out, data.validation_fraction."""
    validation_files: tuple[str, ...] = ()
    """files, megatron, tokens: files to evaluate with, of the same source and form as data.files; of those, nothing is
    held out then. Empty: a share of data.files is held out, data.validation_fraction."""
    max_documents: int | None = None
    """Largest number of documents that are read from the source. null: all."""
    validation_fraction: float = 0.02
    """Share of the text held out for evaluation, chosen by a hash of each document (of each part of a long one)."""
    test_fraction: float = 0.0
    """Share of the text that is neither trained on nor evaluated with: the shards test-*.bin are kept for a use of your
    own. It is chosen by the other end of the range of the same hash, so that changing it moves nothing between training
    and validation, apart from what it takes."""
    on_bad_record: OnBadRecord = OnBadRecord.error
    """error | skip: treatment of a record that cannot be read, has no field data.text_key, or is not of the form that
    data.records asks for. skip leaves it out; how many is told, and skipped.jsonl in the cache folder lists them."""
    dedup: Dedup = Dedup.none
    """none | exact: with exact, of documents with the same text only the first one stays; how many go is told."""
    workers: int | None = None
    """Processes of a node that tokenise, at least 1. null: one for each processor that this process may use. It changes
    no token."""
    max_samples: int | None = None
    """Number of training sequences, read again and again, for overfitting tests. null: all."""
    cache_dir: str | None = None
    """Folder of the cache of tokenised shards. null: $TRIDENT_CACHE, otherwise ~/.cache/trident."""
    prefetch_steps: int = 2
    """Number of steps whose data a thread of each rank reads, and copies to its device, before the steps need them
    (docs/data.md). 0: each step reads its own, and waits for the disk."""
    mask_documents: bool = False
    """records=text: documents that share a sequence do not see each other. A token attends to its own document alone,
    in which positions begin at 0; a document that a sequence's end cuts goes on as one of its own. Examples never see
    each other (docs/data.md)."""
    packing: Packing = Packing.cut
    """cut | best_fit. records=text. Padding is counted among the tokens that are read, and never learned from."""
    boundary_label: BoundaryLabel = BoundaryLabel.keep
    """keep | ignore. records=text: whether the last token of a document, which ends it, learns to predict the first
    token of the next one; with ignore it does not count for the loss."""
    token_dtype: TokenDtype | None = None
    """tokens: type of the ids in files that do not say it themselves. null: uint16 if it holds the ids below
    model.vocab_size, otherwise uint32."""
    eos_id: int | None = None
    """tokens: id that ends a document, in files that do not say themselves where documents end. null: that of the
    tokenizer with tokenizer=pretrained; without one, nothing is known of documents."""
    synthetic_tokens: int = 262144
    """synthetic: length of the generated stream, in tokens."""
