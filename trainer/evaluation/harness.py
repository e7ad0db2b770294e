"""A model as the Language Model Evaluation Harness sees one, and its tasks on it.

Texts become tokens, windows and prompts exactly as in the harness's own model of transformers (`hf`), so that a score
does not depend on which of the two computed it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from trainer.data.tokenizer import BYTES_MARK, ByteTokenizer
from trainer.errors import ConfigError, TridentError, first_line
from trainer.evaluation.team import Team, Wanted
from trainer.evaluation.windows import Window, rolling_windows
from trainer.generation.sampling import Sampling

_DEFAULT_TOKENS = 256
"""Largest number of tokens of a text whose task does not say, as in the harness."""
_TOKENS_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_IN_A_RUN = {"bootstrap_iters": 0, "random_seed": None, "numpy_random_seed": None, "torch_random_seed": None}
_SAMPLING_KEYS = ("top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class TaskOptions:
    """Settings of tasks."""

    num_fewshot: int | None = None
    """Solved examples before each question; None: as each task says."""
    limit: int | None = None
    """Largest number of questions of each task."""
    chat: bool = False
    in_run: bool = False
    """True while a run trains: no standard errors are estimated, and the process's random numbers are left alone."""
    keeps_samples: bool = False


class TridentLM(TemplateLM):  # type: ignore[misc]
    """A model of ours.

    Args:
        team: the ranks that compute.
        tokenizer: transformers' tokenizer of the folder that `trident export` writes.
        ends: tokens that end a text.
        penalty: the repetition penalty that the model's generation_config.json asks for.
    """

    def __init__(self, team: Team, tokenizer: Any, ends: Collection[int], penalty: float = 1.0) -> None:
        super().__init__()
        self._team, self.tokenizer, self._ends = team, tokenizer, frozenset(ends)
        self.repetition_penalty = penalty
        """Penalty of a task that does not say."""
        self._prefix = str(tokenizer.decode(self.prefix_token_id))

    @property
    def eot_token_id(self) -> int:
        """Token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Token before a text that nothing else stands before."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def max_length(self) -> int:
        """Largest number of tokens that the model reads."""
        return self._team.seq_length

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the ids of a text, with the special tokens that the tokenizer puts around one."""
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        if add_special_tokens is None and string.startswith(self._prefix):
            special = {"add_special_tokens": False}
        ids: list[int] = self.tokenizer.encode(string, **special)
        return ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a chat as the tokenizer's template writes it.

        Raises:
            ConfigError: there is no template, or it refuses the messages.
        """
        try:
            text: str = self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        # A template may do anything that Python's operators can fail at.
        except Exception as error:
            raise ConfigError(
                f"chat=true needs a tokenizer with a chat template for these messages, but: {first_line(error)}; use "
                "chat=false"
            ) from error
        return text

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation after its context, and whether it is the likeliest.

        Raises:
            ConfigError: a continuation is empty.
        """
        for request in requests:
            if not request.args[1]:
                raise ConfigError(
                    f"task {request.task_name}: each answer must have text, but one of question {request.doc_id} is "
                    "empty; change the task"
                )
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        windows = []
        for texts, context, continuation in requests:
            if not 1 <= len(continuation) <= self.max_length:
                raise ConfigError(
                    f"each answer of a task must have 1 to {self.max_length} tokens, as many as the model reads, but "
                    f"{texts[1][:60]!r} has {len(continuation)}"
                )
            ids = (*context, *continuation)[-(self.max_length + 1) :]
            windows.append(Window(tuple(ids[:-1]), tuple(continuation)))
        return [(one.log_probability, one.is_greedy) for one in self._team.score(windows)]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Return the log-likelihood of each text, all of its tokens predicted once."""
        length, prefix = self.max_length, self.prefix_token_id
        each = [list(rolling_windows(self.tok_encode(one.args[0]), prefix, length, length)) for one in requests]
        scores = iter(self._team.score([window for windows in each for window in windows]))
        return [sum(next(scores).log_probability for _ in windows) for windows in each]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Return the text that follows each context, up to the strings that end it.

        Raises:
            ConfigError: a task asks for a way to write that there is not.
        """
        asked = [_Asked.of(request, self) for request in requests]
        texts = [""] * len(asked)
        for sampling in dict.fromkeys(one.sampling for one in asked):
            places = [place for place, one in enumerate(asked) if one.sampling == sampling]
            drawn = self._team.write([asked[place].wanted for place in places], sampling, self._ends)
            for place, ids in zip(places, drawn, strict=True):
                text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
                for stop in asked[place].wanted.stops:
                    text = text.split(stop)[0]
                texts[place] = text
        return texts

    @property
    def is_at_work(self) -> bool:
        """True while the ranks compute."""
        return self._team.is_at_work


@dataclass(frozen=True)
class _Asked:
    """A text that a task asks for after one context."""

    wanted: Wanted
    sampling: Sampling

    @classmethod
    def of(cls, request: Any, model: TridentLM) -> _Asked:
        context, keys = request.args[0], dict(request.args[1])
        where = f"task {request.task_name}"
        until = keys.pop("until", None) or []
        end = model.tokenizer.decode(model.eot_token_id, skip_special_tokens=False)
        stops = [one for one in ([until] if isinstance(until, str) else [*until]) if one]
        stops += [end] if end and end not in stops else []
        given = [value for key in _TOKENS_KEYS if (value := keys.pop(key, None)) is not None]
        tokens = int(given[0]) if given else _DEFAULT_TOKENS
        draws = keys.pop("do_sample", None)
        temperature = float(keys.pop("temperature", 0.0))
        if draws is None:
            draws = temperature > 0
        chosen = {key: keys.pop(key) for key in _SAMPLING_KEYS if key in keys}
        if keys:
            raise ConfigError(
                f"{where}: texts can be written with {', '.join(_SAMPLING_KEYS)}, but it asks for {next(iter(keys))}"
            )
        room = model.max_length - tokens
        if tokens < 1 or room < 1:
            raise ConfigError(
                f"{where}: texts must have at least one token and leave room for their question in the "
                f"{model.max_length} that the model reads, but it asks for {tokens}; lower max_gen_toks in the task"
            )
        penalty = float(chosen.pop("repetition_penalty", model.repetition_penalty))
        sampling = Sampling(repetition_penalty=penalty, temperature=(temperature or 1.0) if draws else 0.0, **chosen)
        ids = model.tok_encode(context)[-room:] or [model.prefix_token_id]
        return cls(Wanted(tuple(ids), tokens, tuple(stops), seed=int(request.doc_id or 0)), sampling)


def run_tasks(
    model: TridentLM, manager: TaskManager, loaded: Mapping[str, Any], options: TaskOptions
) -> dict[str, Any]:
    """Return the harness's results.

    Args:
        model: the model.
        manager: the table of tasks.
        loaded: the tasks, from `load_tasks`.
        options: how they are asked.

    Raises:
        ConfigError: a task fails.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        found: dict[str, Any] = simple_evaluate(
            model=model,
            tasks=list(loaded["tasks"]),
            task_manager=_Loaded(manager, loaded),
            num_fewshot=options.num_fewshot,
            limit=options.limit,
            apply_chat_template=options.chat,
            log_samples=options.keeps_samples,
            **(_IN_A_RUN if options.in_run else {}),
        )
    except TridentError:
        raise
    # Tasks are code of anybody; what our own code or the model raises is no fault of theirs.
    except Exception as error:
        if model.is_at_work or _is_ours(error):
            raise
        raise ConfigError(
            f"tasks must be such that the harness can run them, but: {type(error).__name__}: {first_line(error)}"
        ) from error
    return found


class _Loaded:
    """A table of tasks that are loaded already."""

    def __init__(self, manager: TaskManager, loaded: Mapping[str, Any]) -> None:
        self._manager, self._loaded = manager, loaded

    def load(self, _: object) -> Mapping[str, Any]:
        return self._loaded

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)


def _is_ours(error: Exception) -> bool:
    """Return whether an error was raised by a line of this project."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    package = Path(__file__).parent.parent
    return trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(package)


def harness_tokenizer(folder: Path) -> Any:
    """Return transformers' tokenizer of a folder, or what does the same for plain bytes.

    Raises:
        ConfigError: transformers cannot load it.
    """
    if (folder / BYTES_MARK).is_file():
        return _Bytes()
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    # The library raises whatever its parts raise.
    except Exception as error:
        raise ConfigError(
            f"{folder} must hold a tokenizer that transformers loads, but: {first_line(error)}"
        ) from error


def asked_penalty(folder: Path) -> float:
    """Return the repetition penalty of a generation_config.json: transformers takes it unless a task says another."""
    try:
        found = json.loads((folder / "generation_config.json").read_text(encoding="utf-8")).get("repetition_penalty")
    except (OSError, ValueError, AttributeError):
        return 1.0
    return float(found) if isinstance(found, int | float) and found > 0 else 1.0


def decoder_of(folder: Path) -> Callable[[Sequence[int]], str]:
    """Return the function that decodes with a folder's tokenizer, special tokens included."""
    tokenizer = harness_tokenizer(folder)
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False))


class _Bytes:
    """The tokenizer of plain bytes with the names that the harness asks for."""

    eos_token_id, bos_token_id, pad_token_id = ByteTokenizer.eos_id, None, None
    eos_token, bos_token, pad_token = "", None, None
    name_or_path = "bytes"
    chat_template = None

    def __init__(self) -> None:
        self._bytes = ByteTokenizer()

    def encode(self, text: str, **_: Any) -> list[int]:
        return self._bytes.encode(text)

    def decode(self, ids: int | Sequence[int], **_: Any) -> str:
        return self._bytes.decode([ids] if isinstance(ids, int) else ids)

    def apply_chat_template(self, *_: Any, **__: Any) -> str:
        raise ValueError("the tokenizer of plain bytes has none")
