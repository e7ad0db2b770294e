"""`lightning.Trainer` around the plain GPT: what the framework itself costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from benchmarks.case import Case
from benchmarks.contenders.common import Tokens, set_up
from benchmarks.contenders.plain import parameter_groups, plain_gpt
from benchmarks.gate import Gate
from benchmarks.worker import Unavailable

Pair = tuple[torch.Tensor, torch.Tensor]


class _Batches(torch.utils.data.IterableDataset[Pair]):
    """Micro-batches as they are."""

    def __init__(self, case: Case) -> None:
        self._source = Tokens(case, torch.device("cpu"))

    def __iter__(self) -> Iterator[Pair]:
        step = 0
        while True:
            step += 1
            for batch in self._source.micro_batches(step):
                yield batch.input_ids, batch.targets()


def run(case: Case, options: Mapping[str, Any], gate: Gate) -> None:
    """Build and train."""
    device = set_up(case)
    if case.family != "gpt2":
        raise Unavailable("the plain loop is a GPT-2; use --case cpu")
    try:
        import lightning
    except ImportError as error:
        raise Unavailable("lightning is not installed: pip install lightning") from error

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = plain_gpt(case, torch.device("cpu"))
            self.losses: list[torch.Tensor] = []

        def training_step(self, batch: Pair, index: int) -> torch.Tensor:
            loss: torch.Tensor = self.model(*batch)
            self.losses.append(loss.detach())
            return loss

        def configure_optimizers(self) -> Any:
            fused = True if device.type == "cuda" else None
            optimizer = torch.optim.AdamW(parameter_groups(self.model), lr=case.lr, betas=(0.9, 0.95), fused=fused)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: case.learning_rate(done + 1) / case.lr)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    class Turns(lightning.Callback):  # type: ignore[misc]
        def on_train_start(self, *_: Any) -> None:
            gate.open(parameters=sum(p.numel() for p in module.parameters()))

        def on_train_batch_end(self, *_: Any) -> None:
            if len(module.losses) == case.num_micro_batches:
                losses, module.losses = module.losses, []
                gate.done([torch.stack(losses).mean()])

    module = Module()
    trainer = lightning.Trainer(
        accelerator="gpu" if case.device == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if case.dtype == "bf16" else "32-true",
        max_steps=-1,
        accumulate_grad_batches=case.num_micro_batches,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Turns()],
    )
    trainer.fit(module, torch.utils.data.DataLoader(_Batches(case), batch_size=None))
