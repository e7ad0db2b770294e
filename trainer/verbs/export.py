"""`trident export`: a checkpoint as a Hugging Face folder."""

from __future__ import annotations

from trainer.verbs.declare import Key, Option, Positional, Takes, Verb
from trainer.verbs.parse import Words


def run(words: Words) -> int:
    """Write the folder."""
    from trainer.exporting import export_verb

    return export_verb(words.rest, words.value("--dtype"), words.has("--merged"), words.has("--ema"))


VERB = Verb(
    name="export",
    summary="write a checkpoint as a folder that transformers loads",
    run=run,
    positionals=(
        Positional("CKPT", "a checkpoint, or a run folder: its newest whole checkpoint", Takes.run),
        Positional("DST", "a folder that does not exist yet, or is empty", Takes.folder),
    ),
    keys=(Key("check", "compare the logits with transformers', and write nothing if they differ", Takes.text, "true"),),
    options=(
        Option(
            "--dtype",
            "number format of the weights; without it that of the model it began with, otherwise bf16",
            takes=Takes.choice,
            choices=("fp32", "bf16", "fp16"),
        ),
        Option("--merged", "of a LoRA run, write the whole model with its adapters added to the weights"),
        Option("--ema", "write the average of the run's weights (optimizer.ema_decay) instead of the weights"),
    ),
    text=(
        "Writes config.json, safetensors in shards of at most 5 GB with their index, the tokenizer, and a model card "
        "with the facts of the run; AutoModelForCausalLM.from_pretrained loads it without custom code. Tokenizer, chat "
        "template and generation config of an imported model are copied as they were.",
        "Of a LoRA run it writes the adapters as a folder that peft.PeftModel.from_pretrained loads on the base, in "
        "fp32 unless --dtype says otherwise; with --merged the whole model, whose weights are added to in fp32.",
        "A model that no family of transformers can say is refused, with the nearest one and what it lacks.",
    ),
    examples=(
        "trident export runs/mine exported",
        "trident export runs/mine/checkpoints/step_3000 exported --dtype fp32",
        "trident export runs/my_lora exported --merged",
    ),
)
