"""Prompts of the command line and of files, and chats made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.config.schema import TokenizerConfig, TokenizerKind
from trainer.data.chat_template import ChatTemplate, chat_template
from trainer.data.end_of_text import ends_of_generation
from trainer.data.pretrained_tokenizer import load_pretrained
from trainer.data.tokenizer import load_tokenizer, train_bpe
from trainer.errors import ConfigError, DataError, TridentError
from trainer.generation.options import GenerateOptions
from trainer.generation.prompts import read_prompts

TEMPLATE = ChatTemplate(
    "{{ bos_token }}{% for m in messages %}\n{{ '<' + m.role + '>' + m['content'] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}",
    {"bos_token": "<s>"},
    "tokenizer_config.json",
)


def prompts(
    path: Path | None = None, *, template: ChatTemplate | None = None, **options: object
) -> list[tuple[str, str]]:
    options |= {"prompts": "" if path is None else str(path)}
    found = read_prompts(GenerateOptions("x", **options), template)  # type: ignore[arg-type]
    return [(one.origin, one.text) for one in found]


def test_prompts_of_the_command_line_come_before_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "more.txt"
    path.write_bytes("dos line\r\n\n  é \u2028x\n".encode())
    assert prompts(path, prompt=("a", "")) == [
        ("prompt 1", "a"),
        ("prompt 2", ""),
        ("more.txt, line 1", "dos line"),
        ("more.txt, line 3", "  é \u2028x"),
    ]
    assert prompts(prompt=("only",)) == [("prompt", "only")]
    assert prompts() == [("prompt", "")]


def test_prompts_of_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "more.jsonl"
    path.write_text('{"prompt": "a\\nb", "id": 3}\n\n{"prompt": ""}\n')
    assert prompts(path) == [("more.jsonl, line 1", "a\nb"), ("more.jsonl, line 3", "")]


def test_a_mark_of_the_byte_order_is_no_part_of_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(b"\xef\xbb\xbfone\ntwo\n")
    assert [one.text for one in read_prompts(GenerateOptions(checkpoint="", prompts=str(path)), None)] == ["one", "two"]


def test_halves_of_characters_are_told(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "\\ud800 x"}\n')
    for file, typed in ((path, ()), (None, ("\udcff",))):
        with pytest.raises(ConfigError, match="must be text, but is not"):
            prompts(file, prompt=typed)


def test_a_chat_is_put_into_the_template(tmp_path: Path) -> None:
    path = tmp_path / "more.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u "}]}))
    assert [text for _, text in prompts(path, prompt=("hi",), chat=True, template=TEMPLATE)] == [
        "<s><user>hi<answer>",
        "<s><system>s<user>u<answer>",
    ]
    (one,) = read_prompts(GenerateOptions("x", prompt=("hi",), chat=True), TEMPLATE)
    assert one.shown == ""


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.csv", "a", "prompts must be a file of lines (.txt) or of JSON objects (.jsonl), but is "),
        ("x.txt", "\n \n", "prompts must be a file with a prompt, but "),
        ("x.txt", b"\xff\xfe", "prompts must be a file that can be read, but "),
        ("x.txt", None, "prompts must be a file that can be read, but "),
        ("x.jsonl", '{"prompt": 1}', "x.jsonl, line 1 must hold \"prompt\" with a text, or \"messages\""),
        ("x.jsonl", '\n{"messages": []}', "x.jsonl, line 2 must hold \"prompt\" with a text, or \"messages\""),
        ("x.jsonl", '{"messages": [{"role": "user"}]}', "x.jsonl, line 1 must hold"),
        ("x.jsonl", "[1]", "x.jsonl, line 1 must be a JSON object, but is list"),
        ("x.jsonl", "{", "x.jsonl, line 1 must be a JSON object, but: "),
        ("x.jsonl", '{"messages": [{"role": "user", "content": "u"}]}', "x.jsonl, line 1 must be a prompt, but holds"),
    ],
)  # fmt: skip
def test_a_file_that_holds_none_is_told_in_one_line(
    tmp_path: Path, name: str, content: str | bytes | None, problem: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        prompts(path)
    assert str(caught.value).startswith(problem)
    assert "\n" not in str(caught.value)


def test_a_chat_without_a_template_is_told_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^chat=true needs a tokenizer with a chat template, but this one has none"):
        prompts(prompt=("hi",), chat=True)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages[0].__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[7].role.x }}", "has no"),
    ],
)
def test_a_template_that_refuses_is_told_in_one_line(source: str, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        prompts(prompt=("hi",), chat=True, template=ChatTemplate(source, {}, "chat_template.jinja"))
    assert str(caught.value).startswith(
        "prompt: the chat template in chat_template.jinja must render the messages, but"
    )
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def files(**held: object) -> object:
    texts = {
        name.replace("__", "."): text if isinstance(text, str) else json.dumps(text) for name, text in held.items()
    }
    return texts.get


def test_where_a_template_may_lie() -> None:
    config = {"chat_template": "one", "bos_token": {"content": "<b>"}, "eos_token": None}
    found = chat_template(files(tokenizer_config__json=config, special_tokens_map__json={"eos_token": "</s>"}))  # type: ignore[arg-type]
    assert found == ChatTemplate("one", {"bos_token": "<b>"}, "tokenizer_config.json")
    found = chat_template(files(tokenizer_config__json=config, chat_template__jinja="two"))  # type: ignore[arg-type]
    assert found is not None
    assert (found.source, found.origin) == ("two", "chat_template.jinja")
    several = {"chat_template": [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]}
    found = chat_template(files(tokenizer_config__json=several))  # type: ignore[arg-type]
    assert found is not None
    assert found.source == "b"
    assert chat_template(files(tokenizer_config__json={})) is None  # type: ignore[arg-type]
    assert chat_template(files()) is None  # type: ignore[arg-type]
    with pytest.raises(DataError, match="must be JSON"):
        chat_template(files(tokenizer_config__json="{"))  # type: ignore[arg-type]


def test_a_run_keeps_the_template_of_a_pretrained_tokenizer(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for folder in (theirs, ours):
        folder.mkdir()
    train_bpe(["a chat with a model"] * 3, 280).save(theirs)
    assert chat_template(load_tokenizer(theirs).read) is None
    settings = json.loads((theirs / "tokenizer_config.json").read_text())
    (theirs / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": "<s>"}))
    (theirs / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}\n")
    load_pretrained(TokenizerConfig(TokenizerKind.pretrained, path=str(theirs))).save(ours)
    kept = chat_template(load_tokenizer(ours).read)
    assert kept is not None
    assert kept.render([{"role": "user", "content": "hi"}]) == "<s>hi"
    assert load_tokenizer(ours).eos_id == load_tokenizer(theirs).eos_id


def test_rendering_is_that_of_transformers() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = (
        "{%- for m in messages %}\n    {%- if m.role == 'system' %}{{ m | tojson }}{% continue %}{% endif %}\n"
        "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}\n"
        "{% generation %}{{ m.content | length }}{% endgeneration %}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}{{ bos_token }}"
    )
    messages = [{"role": "system", "content": "<é>"}, {"role": "user", "content": " hi\n"}]
    theirs: Any = render_jinja_template([messages], chat_template=source, add_generation_prompt=True, bos_token="<s>")
    assert ChatTemplate(source, {"bos_token": "<s>"}, "x").render(messages) == theirs[0][0]


def test_the_ends_that_a_generation_config_names() -> None:
    def ends(held: object) -> tuple[int, ...]:
        return ends_of_generation(files(generation_config__json=held))  # type: ignore[arg-type]

    assert ends({"eos_token_id": [5, 7]}) == (5, 7)
    assert ends({"eos_token_id": 5}) == (5,)
    assert ends({"eos_token_id": None}) == ends({}) == ()
    for wrong in ("x", [1, True], -1):
        with pytest.raises(
            TridentError, match=r"eos_token_id of generation_config\.json must be a token's id or a list"
        ):
            ends({"eos_token_id": wrong})
