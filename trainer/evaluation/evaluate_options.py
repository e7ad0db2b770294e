"""Options of `trident evaluate`, parsed as key=value like every other verb. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.config.other_names import Meaning
from trainer.inference.key_words import KeyWords

PARTS = ("all", "validation", "train", "test")
AS_THE_TASK_SAYS = -1


@dataclass
class EvaluateOptions:
    """The model to score, and on what."""

    checkpoint: str = ""
    """A run folder (its newest checkpoint), a checkpoint folder, or the folder or hub name of a Hugging Face model. A
    first word that is no key=value means it too."""
    ema: bool = False
    """Use the average of the run's weights (optimizer.ema_decay) instead of the weights."""
    tasks: tuple[str, ...] = ()
    """Tasks of the Language Model Evaluation Harness, with commas: names, patterns with *, or .yaml files. Needs
    lm-eval."""
    include_path: tuple[str, ...] = ()
    """Folder with further tasks of your own; may be given several times."""
    num_fewshot: int = AS_THE_TASK_SAYS
    """Number of solved examples before each question of a task. -1: as each task says."""
    limit: int = 0
    """Largest number of documents of the data, and of questions of each task. 0: all."""
    chat: bool = False
    """Put each question of a task into the tokenizer's chat template, as the words of a user."""
    part: str = ""
    """Part of the data that is scored: validation (what data.validation_fraction holds out), test (what
    data.test_fraction holds out), train or all. Without it, validation for the run's own data and all for others."""
    sources: tuple[str, ...] = ()
    """Names of the sources of data.blend that are scored, with commas. Without it, all of them."""
    stride: int = 0
    """Tokens by which the window moves on in a document that is longer than the model's sequence. 0: all of them."""
    batch_size: int = 8
    """Largest number of sequences that are computed at once."""
    tokenizer: str = ""
    """Folder, tokenizer.json or Hugging Face name of another tokenizer than the model's own, for data but not tasks."""
    output: str = ""
    """File (.json) for the scores and all that decides them. TensorBoard and wandb files go into a folder beside it."""
    samples: str = ""
    """File (.jsonl) that gets an object for each question of each task: the document, what the model said, metrics."""
    settings: tuple[str, ...] = ()
    """Words of the config that say data, logging, layout and runtime, as they were given."""


_SAME = {
    "checkpoint": "ckpt ckpt_path ckpt_dir checkpoint_path checkpoint_dir model model_path pretrained model_args "
    "model_name_or_path run run_dir load path from",
    "tasks": "task",
    "include_path": "include task_path",
    "num_fewshot": "fewshot shots num_shots n_shot n_shots",
    "limit": "num_samples max_examples max_samples limit_batches",
    "chat": "apply_chat_template chat_template",
    "batch_size": "eval_batch_size max_batch_size micro_batch_size per_device_eval_batch_size",
    "output": "output_path out output_file save_path results",
    "samples": "log_samples write_out",
    "part": "split subset",
    "sources": "source blend_sources",
    "layout.tensor_parallel_size": "tp tensor_parallel_size tensor_model_parallel_size",
    "layout.pipeline_parallel_size": "pp pipeline_parallel_size pipeline_model_parallel_size",
    "layout.data_parallel_size": "dp data_parallel_size",
    "runtime.device": "device",
    "data.files": "file files data_path dataset_path",
}
_ABSENT = {
    "gen_kwargs generation_kwargs": "a task says how its texts are written",
    "dtype precision": "weights are those of the checkpoint, in fp32",
    "seed random_seed": "few-shot examples are drawn with the harness's own seeds, so that scores compare",
    "max_length seq_length": "a model reads as many tokens as it was made for; stride says how windows overlap",
    "use_cache cache_requests": "every score is computed",
    "trust_remote_code": "no code of a model is run",
}
OTHER_NAMES: dict[str, Meaning] = {
    **{name: Meaning((key,)) for key, names in _SAME.items() for name in names.split()},
    **{name: Meaning(note=note) for names, note in _ABSENT.items() for name in names.split()},
}
"""Name elsewhere -> its counterpart here."""
GROUPS = ("data", "logging", "layout", "runtime")
WORDS = KeyWords(
    EvaluateOptions, groups=GROUPS, other_names=OTHER_NAMES, repeated=("include_path",), lists=("tasks", "sources")
)
KEYS = WORDS.keys
"""Keys of the verb's own."""


def parse(arguments: Sequence[str]) -> EvaluateOptions:
    """Return the options.

    Raises:
        ConfigError: names every unknown key, wrong type and value out of range.
    """
    return WORDS.parse(arguments, "evaluate", _problems)


def _problems(options: EvaluateOptions) -> list[str]:
    fewshot = options.num_fewshot
    rules = (
        (bool(options.checkpoint), "checkpoint must name a run folder, a checkpoint or a model, but is empty"),
        (all(one.strip() for one in options.tasks), "tasks must be names with commas, but one is empty"),
        (all(one.strip() for one in options.sources), "sources must be names with commas, but one is empty"),
        (fewshot >= AS_THE_TASK_SAYS, f"num_fewshot must be at least 0, or -1, but is {fewshot}"),
        (options.limit >= 0, f"limit must be at least 0, but is {options.limit}"),
        (options.stride >= 0, f"stride must be at least 0, but is {options.stride}"),
        (options.batch_size >= 1, f"batch_size must be at least 1, but is {options.batch_size}"),
        (
            options.part in ("", *PARTS),
            f"part must be one of {', '.join(PARTS)}, but is {options.part!r}",
        ),
        *(
            (name.endswith(kind) or not name, f"{key} must be the name of a {kind} file, but is {name!r}")
            for key, name, kind in (("output", options.output, ".json"), ("samples", options.samples, ".jsonl"))
        ),
    )
    return [text for holds, text in rules if not holds] + _without_effect(options)


def _without_effect(options: EvaluateOptions) -> list[str]:
    if options.tasks:
        return []
    given = {
        "include_path": options.include_path,
        "num_fewshot": options.num_fewshot != AS_THE_TASK_SAYS,
        "chat": options.chat,
        "samples": options.samples,
    }
    return [f"{key} has no effect without tasks=...; leave it out" for key, is_given in given.items() if is_given]
