"""The three commands of the README's section "Your model", on a small model of the same architecture, offline."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from tests.helpers.command import rows, run, trident
from tests.helpers.hf_families import Tiny, hf_model
from tests.house.test_docs import ROOT, SMOLLM2, code_lines
from trainer.data.tokenizer import train_bpe

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SMALL = ("train.steps=2", "model.seq_length=32", "batch.global_batch_size=4", "batch.micro_batch_size=1")
LAYOUT = "layout=pp2"
"""The README's six ranks are too many for a small machine; all axes together are tested in forked ranks."""
CPU = (LAYOUT, "runtime.device=cpu", "logging.wandb=disabled", "schedule.warmup_steps=0", "data.cache_dir=cache")


def make_source(folder: Path, vocab_size: int) -> None:
    """Write what a download would be: a model of the README's architecture, its tokenizer and its generation config."""
    sizes = {"hidden_size": 72, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": vocab_size}
    arguments = {**SMOLLM2, **sizes, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0}
    arguments.pop("architectures")
    arguments["rope_parameters"] = {"rope_type": "default", "rope_theta": arguments.pop("rope_theta")}
    hf_model(Tiny("LlamaForCausalLM", arguments)).save_pretrained(folder)
    train_bpe(["so much text that it can be learnt, and more of it"], 300).save(folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")


def test_the_commands_of_the_section_do_what_they_say(tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text().partition("### Your model")[2].partition("\n### ")[0]
    lines = [line for line in code_lines(ROOT / "README.md") if line in re.sub(r"\\\n\s*", "", section)]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("trident ")]
    assert [words[0] for words in commands] == ["import", "train", "evaluate", "export"]
    source = tmp_path / "SmolLM2-135M"
    make_source(source, 307)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_text(
        "".join(
            json.dumps({"text": f"so much text that it can be learnt, and more of it: {number}"}) + "\n"
            for number in range(300)
        )
    )

    words = [word for word in commands[1] if not word.startswith("model.seq_length")]
    for command in (commands[0], [*words, *SMALL, *CPU]):
        ended = run(trident(*command), tmp_path, 200)
        assert ended.code == 0, ended.out + ended.err
    mine = tmp_path / "runs" / "mine"
    assert [row["step"] for row in rows(mine)][-1] == 2
    text = (mine / "config.yaml").read_text()
    assert "path: null" in text.partition("tokenizer:")[0]
    assert "hidden_size: 72" in text

    # The run goes on by the same command, and is exported, without the model that it began with.
    shutil.move(source, tmp_path / "elsewhere")
    ended = run(trident(*words, *SMALL, *CPU, "train.steps=3", "--dry-run"), tmp_path, 200)
    assert ended.code == 0, ended.out + ended.err
    assert f"run     {mine}, goes on from step 2" in ended.out
    ended = run(trident(*commands[2], "runtime.device=cpu"), tmp_path, 200)
    assert ended.code == 0, ended.out + ended.err
    assert "bits per byte" in ended.out
    ended = run(trident(*commands[3], "--dtype", "fp32"), tmp_path, 200)
    assert ended.code == 0, ended.out + ended.err

    import transformers

    out = tmp_path / "mine"
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    before = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "elsewhere")
    assert model.dtype == torch.float32
    assert not torch.equal(model.model.embed_tokens.weight, before.model.embed_tokens.weight)
    torch.testing.assert_close(model.model.embed_tokens.weight, before.model.embed_tokens.weight, rtol=0, atol=0.05)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (out / name).read_bytes() == (tmp_path / "elsewhere" / name).read_bytes(), name
    config = json.loads((out / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100000.0
    assert config["max_position_embeddings"] == 8192
    assert "Training steps | 2" in (out / "README.md").read_text()
