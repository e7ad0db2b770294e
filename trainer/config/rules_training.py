"""Rules about the data and the length of a run: data, tokenizer, schedule, evaluation, faults on the way."""

from __future__ import annotations

import math
from collections.abc import Iterator

from trainer.config.blend_sources import READY_MADE, source_configs
from trainer.config.held_out import has_validation, names_validation
from trainer.config.plan import resolved_decay_steps
from trainer.config.rules_common import Case, Rule, neighbours, use
from trainer.config.schema import (
    DataConfig,
    DataSource,
    Dtype,
    SaveFailure,
    ScheduleKind,
    SpikePolicy,
    TokenizerConfig,
    TokenizerKind,
    TrainConfig,
)
from trainer.config.schema_data import ID_FILES

SMALLEST_BPE = 257
"""The 256 bytes and the end-of-text id."""
NEEDS_FILES = (DataSource.files, *ID_FILES)
_EXAMPLES = {
    DataSource.files: "[corpus/*.jsonl]",
    DataSource.megatron: "[corpus_text_document]",
    DataSource.tokens: "[tokens/*.bin]",
}


def warm_up(case: Case) -> Iterator[str]:
    """The warm-up ends before the run does."""
    schedule, steps = case.config.schedule, case.steps
    if schedule.warmup_steps >= steps >= 1:
        yield f"schedule.warmup_steps ({schedule.warmup_steps}) must be less than train.steps ({steps})"


def decay(case: Case) -> Iterator[str]:
    """The decay has room after the warm-up, and the kind of schedule has a decay."""
    schedule, steps = case.config.schedule, case.steps
    warmup, length = schedule.warmup_steps, resolved_decay_steps(case.config)
    if length < 1:
        return  # reported by `minima`
    if schedule.kind is ScheduleKind.constant:
        if schedule.decay_steps is not None:
            yield "schedule.decay_steps has no effect with schedule.kind=constant; leave it out"
    elif schedule.decay_steps is None and math.isinf(steps):
        return  # it follows from the steps, which are not known yet
    elif schedule.kind is ScheduleKind.wsd:
        if warmup < steps < warmup + length:
            yield (
                f"schedule.warmup_steps ({warmup}) + schedule.decay_steps ({length}) must be at most train.steps "
                f"({steps}) for schedule.kind=wsd"
            )
    elif warmup < steps and length <= warmup:
        yield f"schedule.decay_steps ({length}) must be greater than schedule.warmup_steps ({warmup})"


def epochs(case: Case) -> Iterator[str]:
    """The run's length is given in one way."""
    train = case.config.train
    if train.epochs is not None and train.steps != TrainConfig().steps:
        yield (
            f"train.steps ({train.steps}) and train.epochs ({train.epochs:g}) both say how long the run is; leave one "
            "of them out"
        )


def evaluation(case: Case) -> Iterator[str]:
    """Evaluation has data that were held out."""
    found = [has_validation(one.data) for one in source_configs(case.config).values()]
    if case.config.train.eval_every > 0 and not any(found or [has_validation(case.config.data)]):
        yield (
            f"train.eval_every={case.config.train.eval_every} needs data.validation_fraction > 0, but it is 0; "
            "use data.validation_fraction=0.02, or train.eval_every=0"
        )


def data_source(case: Case) -> Iterator[str]:
    """The source has the data that it reads, and no key is given that it does not read."""
    data = case.config.data
    source = data.source
    if data.blend.sources:
        return  # each of them is judged by `rules_blend`
    if source in NEEDS_FILES and not data.files:
        what = _EXAMPLES[source]
        yield f"data.source={source.value} needs data.files; for example data.files={what}"
    if any(not path.strip() for path in data.files):
        yield "data.files must hold paths, but one of them is empty"
    if data.files and source not in NEEDS_FILES:
        yield f"data.files has no effect with data.source={source.value}; use data=files, or leave it out"
    if source is DataSource.hub and not data.hub_path:
        yield "data.source=hub needs data.hub_path; for example data.hub_path=HuggingFaceFW/fineweb-edu"
    for key, value in (("hub_path", data.hub_path), ("hub_name", data.hub_name)):
        if value and source is not DataSource.hub:
            yield f"data.{key} has no effect with data.source={source.value}; use data=hub, or leave it out"
    if data.hub_download and source is not DataSource.hub:
        yield f"data.hub_download=true has no effect with data.source={source.value}; use data=hub, or leave it out"
    if data.document_separator == "":
        yield "data.document_separator must not be empty; set null for one document a file"
    elif data.document_separator is not None and source is not DataSource.files:
        yield f"data.document_separator has no effect with data.source={source.value}; use data=files, or leave it out"
    if data.text_join is not None and source not in (DataSource.files, DataSource.hub):
        yield f"data.text_join has no effect with data.source={source.value}; use data=files or hub, or leave it out"


def own_validation(case: Case) -> Iterator[str]:
    """Validation data are named for a source that has them, and then no share of the rest is asked for."""
    data = case.config.data
    if data.blend.sources:
        return  # each of them is judged by `rules_blend`
    source = data.source
    if data.validation_files and source not in NEEDS_FILES:
        yield f"data.validation_files has no effect with data.source={source.value}; use data=files, or leave it out"
    if any(not path.strip() for path in data.validation_files):
        yield "data.validation_files must hold paths, but one of them is empty"
    if data.hub_validation_split is not None and source is not DataSource.hub:
        yield f"data.hub_validation_split has no effect with data.source={source.value}; use data=hub, or leave it out"
    if data.hub_validation_split == data.hub_split and data.hub_validation_split is not None:
        yield (
            f"data.hub_validation_split must be another split than data.hub_split, but both are {data.hub_split}; "
            "name another one, or use data.validation_fraction"
        )
    key = "data.validation_files" if data.validation_files else "data.hub_validation_split"
    if names_validation(data) and data.validation_fraction not in (0, DataConfig().validation_fraction):
        yield f"data.validation_fraction={data.validation_fraction} has no effect with {key}; leave one of them out"


def token_files(case: Case) -> Iterator[str]:
    """Keys about files of ids have such files, and the id that ends documents is one of the model's."""
    data, size = case.config.data, case.config.model.vocab_size
    if data.blend.sources:
        return  # each of them is judged by `rules_blend`
    dtype, eos_id = data.token_dtype and data.token_dtype.value, data.eos_id
    # A negative one is told as such.
    for key, value in (("token_dtype", dtype), ("eos_id", eos_id if eos_id is None or eos_id >= 0 else None)):
        if value is not None and data.source is not DataSource.tokens:
            shown = data.source.value
            yield f"data.{key}={value} has no effect with data.source={shown}; use data=tokens, or leave it out"
    if data.source is DataSource.tokens and data.eos_id is not None and size is not None and data.eos_id >= size:
        yield f"data.eos_id ({data.eos_id}) must be less than model.vocab_size ({size}): it is an id of the files"


def tokenizer_settings(case: Case) -> Iterator[str]:
    """The kind of tokenizer has the keys that it needs, and none that it ignores."""
    tokenizer = case.config.tokenizer
    kind = tokenizer.kind
    if kind is TokenizerKind.pretrained and not tokenizer.path:
        yield (
            "tokenizer.kind=pretrained needs tokenizer.path: a folder, a tokenizer.json or a Hugging Face name; "
            "for example tokenizer.path=openai-community/gpt2"
        )
    if tokenizer.path is not None and kind is not TokenizerKind.pretrained:
        yield f"tokenizer.path has no effect with tokenizer.kind={kind.value}; use tokenizer=pretrained"
    if tokenizer.eos_token is not None and kind is not TokenizerKind.pretrained:
        yield f"tokenizer.eos_token has no effect with tokenizer.kind={kind.value}; use tokenizer=pretrained"
    if tokenizer.vocab_size is not None and kind is not TokenizerKind.bpe:
        yield f"tokenizer.vocab_size has no effect with tokenizer.kind={kind.value}; leave it out"
    if kind is TokenizerKind.bpe and tokenizer.vocab_size is not None and tokenizer.vocab_size < SMALLEST_BPE:
        yield (
            f"tokenizer.vocab_size must be at least {SMALLEST_BPE} (256 bytes and end of text), "
            f"but is {tokenizer.vocab_size}"
        )


def vocabulary(case: Case) -> Iterator[str]:
    """Every id of the tokenizer has an embedding row, and rows without an id are wanted."""
    model, tokenizer = case.config.model, case.config.tokenizer
    size = model.vocab_size
    if size is None or size < 1 or case.config.data.source in READY_MADE:
        return
    if tokenizer.kind is TokenizerKind.pretrained:
        return  # known once the tokenizer is loaded
    trained = SMALLEST_BPE if tokenizer.kind is TokenizerKind.bytes else tokenizer.vocab_size
    named = "the byte tokenizer" if tokenizer.kind is TokenizerKind.bytes else "tokenizer.vocab_size"
    if trained is None:
        if size < SMALLEST_BPE:
            yield (
                f"model.vocab_size must be at least {SMALLEST_BPE} (256 bytes and end of text) for "
                f"tokenizer.kind=bpe, but is {size}"
            )
    elif trained > size:
        yield f"{named} ({trained}) must be at most model.vocab_size ({size}); use model.vocab_size={trained} or null"
    elif trained < size and not tokenizer.allow_unused_ids:
        yield (
            f"{named} ({trained}) must equal model.vocab_size ({size}), or rows of the embedding are never trained; "
            f"use model.vocab_size={trained} or null, or tokenizer.allow_unused_ids=true"
        )


def vocabulary_of_ids(case: Case) -> Iterator[str]:
    """Sources with ready-made ids have a given vocabulary."""
    source = case.config.data.source
    if source in READY_MADE and not case.config.data.blend.sources and case.config.model.vocab_size is None:
        example = 2048 if source is DataSource.synthetic else 50257
        yield (
            f"data.source={source.value} needs model.vocab_size, since its ids come without a tokenizer; "
            f"for example model.vocab_size={example}"
        )


def tokenizer_of_ids(case: Case) -> Iterator[str]:
    """Sources with ready-made ids train no tokenizer."""
    source, tokenizer = case.config.data.source, case.config.tokenizer
    if source not in READY_MADE or case.config.data.blend.sources:
        return
    if source is DataSource.synthetic and tokenizer != TokenizerConfig():
        yield "tokenizer.* has no effect with data.source=synthetic; leave it out"
    untrained = tokenizer.kind is TokenizerKind.pretrained or tokenizer == TokenizerConfig()
    if source in ID_FILES and not untrained:
        yield (
            f"data.source={source.value} holds token ids already, so tokenizer.kind={tokenizer.kind.value} cannot make "
            "them; use tokenizer=pretrained with the tokenizer that made them, or leave it out"
        )


def documents(case: Case) -> Iterator[str]:
    """A generated stream has no documents to count."""
    if case.config.data.source is DataSource.synthetic and case.config.data.max_documents is not None:
        yield "data.max_documents has no effect with data.source=synthetic; use data.synthetic_tokens"


def tokenising(case: Case) -> Iterator[str]:
    """Keys about how text becomes tokens need text."""
    data, default = case.config.data, DataConfig()
    if data.source in READY_MADE:
        split = ("test_fraction",) if data.source is DataSource.synthetic else ()
        for key in (*split, "on_bad_record", "dedup", "workers"):
            value = getattr(data, key)
            if value != getattr(default, key):
                shown = getattr(value, "value", value)
                yield (
                    f"data.{key}={shown} has no effect with data.source={data.source.value}, whose ids come "
                    "ready-made; leave it out"
                )
    if data.validation_fraction + data.test_fraction >= 1 > max(data.validation_fraction, data.test_fraction):
        yield (
            f"data.validation_fraction ({data.validation_fraction}) + data.test_fraction ({data.test_fraction}) must "
            "be less than 1, or nothing is left to train on"
        )


def checkpoints(case: Case) -> Iterator[str]:
    """Keys about how to save need saves."""
    checkpoint = case.config.checkpoint
    every, keep_every = checkpoint.every, checkpoint.keep_every
    if keep_every > 0 and (every == 0 or keep_every % every):
        legal = "set checkpoint.every" if every == 0 else use(neighbours(keep_every, every), keep_every)
        yield f"checkpoint.keep_every ({keep_every}) must be a multiple of checkpoint.every ({every}); {legal}"
    if checkpoint.on_failure is SaveFailure.go_on and every == 0:
        yield "checkpoint.on_failure=go_on has no effect with checkpoint.every=0; set checkpoint.every, or leave it out"
    if checkpoint.init_from is not None and checkpoint.resume not in ("auto", "never"):
        yield (
            f"checkpoint.init_from={checkpoint.init_from} begins at step 1 with the weights alone, and "
            f"checkpoint.resume={checkpoint.resume} goes on at its step with all of it; leave one of them out"
        )


def skipping(case: Case) -> Iterator[str]:
    """fp16 may skip steps: that is how it finds its loss scale."""
    train, dtype = case.config.train, case.config.precision.dtype
    if dtype is Dtype.fp16 and train.max_skipped_in_row == 0:
        yield (
            "train.max_skipped_in_row must be at least 1 with precision.dtype=fp16, which skips steps until its loss "
            "scale fits, but is 0"
        )


def spikes(case: Case) -> Iterator[str]:
    """A spike policy has the settings that it needs, and settings for spikes belong to a policy."""
    train, default = case.config.train, TrainConfig()
    if train.spike_policy is SpikePolicy.none:
        for key, least in (("spike_window", 2), ("spike_sigmas", 0)):
            value = getattr(train, key)
            # Values that are too small are reported by `minima`.
            if value != getattr(default, key) and value >= least:
                yield f"train.{key} has no effect with train.spike_policy=none; leave it out, or set a policy"
    if train.spike_policy is not SpikePolicy.rewind:
        if train.max_rewinds != default.max_rewinds and train.max_rewinds >= 1:
            yield (
                f"train.max_rewinds has no effect with train.spike_policy={train.spike_policy.value}; "
                "use train.spike_policy=rewind, or leave it out"
            )
    elif case.config.checkpoint.every == 0:
        yield "train.spike_policy=rewind goes back to a checkpoint and needs checkpoint.every > 0, but it is 0"


def hang_timeout(case: Case) -> Iterator[str]:
    """The watchdog reports before the collectives fail."""
    runtime = case.config.runtime
    if runtime.hang_timeout_s is not None and runtime.hang_timeout_s >= runtime.timeout_s >= 1:
        yield (
            f"runtime.hang_timeout_s ({runtime.hang_timeout_s}) must be less than runtime.timeout_s "
            f"({runtime.timeout_s}), after which collectives fail by themselves"
        )


RULES: tuple[Rule, ...] = (
    warm_up,
    decay,
    epochs,
    evaluation,
    data_source,
    own_validation,
    token_files,
    tokenizer_settings,
    vocabulary,
    vocabulary_of_ids,
    tokenizer_of_ids,
    documents,
    tokenising,
    checkpoints,
    skipping,
    spikes,
    hang_timeout,
)
