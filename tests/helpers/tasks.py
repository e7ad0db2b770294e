"""Tasks of the harness that are made of local files alone: multiple choice, texts that are written, and prose."""

from __future__ import annotations

import json
from pathlib import Path

QUIZ = [
    {"question": "The snow is", "choices": ["white", "a green fruit", "w"], "answer": 0},
    {"question": "One and two are", "choices": ["seven", "three", "ten of them"], "answer": 1},
    {"question": "A cat says", "choices": ["bow", "moo moo", "meow"], "answer": 2},
    {"question": "import", "choices": ["os", "ox", "o"], "answer": 0},
    {"question": "A week has", "choices": ["7 days", "8 days", "9 days"], "answer": 0},
]
PROSE = [
    "A short text.",
    "A text that is much longer than the model's positions, so that it is read in several windows, each once. " * 2,
    "  blanks at both ends ",
    "naïve café, 東京",
]
FINISH = ["def ", "The answer to everything is", "a, b, c, "]
NAMES = ("quiz", "finish", "prose")


def write_tasks(folder: Path) -> Path:
    """Write the tasks and their data into a folder, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "quiz.jsonl", QUIZ)
    _write(folder / "prose.jsonl", [{"text": text} for text in PROSE])
    _write(folder / "finish.jsonl", [{"text": text, "answer": "e"} for text in FINISH])
    (folder / "quiz.yaml").write_text(
        f"""task: quiz
{_data(folder, "quiz")}
output_type: multiple_choice
fewshot_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
"""
    )
    (folder / "finish.yaml").write_text(
        f"""task: finish
{_data(folder, "finish")}
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["e", "\\n"]
  max_gen_toks: 9
metric_list:
  - metric: exact_match
"""
    )
    (folder / "prose.yaml").write_text(
        f"""task: prose
{_data(folder, "prose")}
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
"""
    )
    return folder


def _data(folder: Path, name: str) -> str:
    return f"""dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder / name}.jsonl}}
  cache_dir: {folder / "cache"}
test_split: test"""


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
