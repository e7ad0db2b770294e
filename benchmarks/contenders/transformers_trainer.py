"""`transformers.Trainer` with GPT2LMHeadModel or LlamaForCausalLM, defaults wherever mathematics leave a choice.

Options: `deepspeed` (through DeepSpeed's engine, ZeRO-1), `compile` (torch_compile=True), `fused` (AdamW's fused kernel
by name), `liger` (use_liger_kernel=True).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.case import Case
from benchmarks.contenders.common import Tokens, initial_weights, set_up
from benchmarks.gate import Gate
from benchmarks.worker import Unavailable

LAST_STEP = 100_000


def _gpt2(case: Case) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=case.vocab_size,
        n_positions=case.seq_length,
        n_embd=case.hidden_size,
        n_layer=case.num_layers,
        n_head=case.num_heads,
        n_inner=case.ffn_hidden_size,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    return GPT2LMHeadModel(config)


def _gpt2_names(layers: int) -> dict[str, tuple[str, bool]]:
    """Return their name -> (ours, whether theirs is transposed)."""
    names = {
        "transformer.wte.weight": ("embedding.weight", False),
        "transformer.wpe.weight": ("position.weight", False),
        "transformer.ln_f.weight": ("final_norm.weight", False),
        "transformer.ln_f.bias": ("final_norm.bias", False),
    }
    parts = {
        "ln_1": "attention_norm",
        "ln_2": "mlp_norm",
        "attn.c_attn": "attention.qkv",
        "attn.c_proj": "attention.output",
        "mlp.c_fc": "mlp.up",
        "mlp.c_proj": "mlp.down",
    }
    for layer in range(layers):
        for theirs, ours in parts.items():
            for kind in ("weight", "bias"):
                turned = kind == "weight" and theirs.startswith(("attn", "mlp"))
                names[f"transformer.h.{layer}.{theirs}.{kind}"] = (f"blocks.{layer}.{ours}.{kind}", turned)
    return names


def _llama(case: Case) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=case.vocab_size,
        hidden_size=case.hidden_size,
        intermediate_size=case.ffn_hidden_size,
        num_hidden_layers=case.num_layers,
        num_attention_heads=case.num_heads,
        max_position_embeddings=case.seq_length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def llama_weights(case: Case) -> dict[str, torch.Tensor]:
    """Return Trident's initial weights of a LLaMA shape by Hugging Face's names."""
    ours = initial_weights(case)
    weights = {
        "model.embed_tokens.weight": ours["embedding.weight"],
        "model.norm.weight": ours["final_norm.weight"],
        "lm_head.weight": ours["head.weight"],
    }
    for layer in range(case.num_layers):
        block, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        q, k, v = ours[f"{block}.attention.qkv.weight"].chunk(3)
        gate, up = ours[f"{block}.mlp.gate_up.weight"].chunk(2)
        weights |= {
            f"{theirs}.input_layernorm.weight": ours[f"{block}.attention_norm.weight"],
            f"{theirs}.post_attention_layernorm.weight": ours[f"{block}.mlp_norm.weight"],
            f"{theirs}.self_attn.q_proj.weight": q,
            f"{theirs}.self_attn.k_proj.weight": k,
            f"{theirs}.self_attn.v_proj.weight": v,
            f"{theirs}.self_attn.o_proj.weight": ours[f"{block}.attention.output.weight"],
            f"{theirs}.mlp.gate_proj.weight": gate,
            f"{theirs}.mlp.up_proj.weight": up,
            f"{theirs}.mlp.down_proj.weight": ours[f"{block}.mlp.down.weight"],
        }
    return weights


def hugging_face_model(case: Case) -> Any:
    """Return the Hugging Face model with Trident's initial weights."""
    if case.family == "gpt2":
        ours = initial_weights(case)
        model = _gpt2(case)
        names = _gpt2_names(case.num_layers)
        weights = {
            name: ours[mine].t().contiguous() if turned else ours[mine] for name, (mine, turned) in names.items()
        }
    else:
        model = _llama(case)
        weights = llama_weights(case)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or [name for name in missing if name != "lm_head.weight"]:
        raise RuntimeError(f"weights do not fit: {unexpected} {missing}")
    model.tie_weights()
    return model


class _Samples(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
    """Single samples, in the order of Trident's batches."""

    def __init__(self, case: Case) -> None:
        self._source = Tokens(case, torch.device("cpu"))

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        step = 0
        while True:
            step += 1
            for batch in self._source.micro_batches(step):
                for ids, labels in zip(batch.input_ids, batch.targets(), strict=True):
                    yield {"input_ids": ids, "labels": labels, "shift_labels": labels}


def _deepspeed_settings() -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": LAST_STEP,
    }


def check_liger(case: Case) -> None:
    """Check that Liger's kernels can take part in this case.

    Raises:
        Unavailable: why not.
    """
    if find_spec("liger_kernel") is None:
        raise Unavailable("use_liger_kernel needs liger-kernel: pip install liger-kernel")
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if case.family not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise Unavailable(f"liger-kernel has nothing for models of type {case.family}; it knows LLaMA shapes")
    if case.device == "cpu":
        raise Unavailable("Liger's kernels need a GPU")


def _arguments(case: Case, options: Mapping[str, Any]) -> Any:
    from transformers import TrainingArguments

    optimizer: dict[str, Any] = {"optim": "adamw_torch_fused"} if options.get("fused") else {}
    return TrainingArguments(
        output_dir="transformers_output",
        max_steps=LAST_STEP,
        per_device_train_batch_size=case.micro_batch_size,
        gradient_accumulation_steps=case.num_micro_batches,
        learning_rate=case.lr,
        adam_beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=1.0,
        bf16=case.dtype == "bf16",
        use_cpu=case.device == "cpu",
        torch_compile=bool(options.get("compile")),
        use_liger_kernel=bool(options.get("liger")),
        **optimizer,
        deepspeed=_deepspeed_settings() if options.get("deepspeed") else None,
        save_strategy="no",
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        logging_steps=10,
    )


def run(case: Case, options: Mapping[str, Any], gate: Gate) -> None:
    """Build and train."""
    if options.get("liger"):
        check_liger(case)
    set_up(case)
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise Unavailable("transformers.Trainer needs accelerate: pip install accelerate") from error
    from transformers import Trainer, TrainerCallback

    class Recording(Trainer):
        """Keeps losses; the schedule of all contenders."""

        losses: list[torch.Tensor]

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss: torch.Tensor = super().training_step(*args, **kwargs)
            self.losses.append(loss)
            return loss

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer,  # type: ignore[arg-type]
                lambda done: case.learning_rate(done + 1) / case.lr,
            )
            return self.lr_scheduler

    class Turns(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            attention = model.config._attn_implementation
            count = sum(p.numel() for p in model.parameters())
            gate.open(parameters=count, optimizer=str(arguments.optim), attention=attention)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            losses, trainer.losses = trainer.losses, []
            gate.done([torch.stack(losses).sum()])

    arguments = _arguments(case, options)
    model = hugging_face_model(case)
    trainer = Recording(model=model, args=arguments, train_dataset=_Samples(case), callbacks=[Turns()])
    trainer.losses = []
    trainer.train()
