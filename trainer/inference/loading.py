"""This rank's layers of a model that is used without training, filled from its checkpoint or Hugging Face folder."""

from __future__ import annotations

from trainer.checkpoint.held_weights import averaged_weights, weights_of
from trainer.errors import CheckpointError
from trainer.inference.model_source import ModelSource
from trainer.inference.stage import StageModel, stage_model
from trainer.pipeline.partition import stages
from trainer.tensor_parallel.init import fill
from trainer.topology.groups import ParallelGroups


def load_stage(source: ModelSource, groups: ParallelGroups) -> StageModel:
    """Return this rank's layers of a model, in evaluation mode, fp32, on this rank's device. No collective.

    Raises:
        CheckpointError: weights are missing or do not fit the config.
    """
    found, plan = source.found, source.plan
    weights = weights_of(found, plan.model)
    if source.ema:
        if found.is_foreign:
            raise CheckpointError(f"ema=true needs a checkpoint of a run, but {found.path} is a Hugging Face model")
        weights = averaged_weights(found.path, found.manifest, plan.model)
    unread = set(weights.names()) - set(plan.model.tensors)
    if unread:
        raise CheckpointError(f"{found.path} must hold the model of its config.yaml, but also holds {min(unread)}")
    names = [layer.name for layer in stages(plan)[groups.place.stage].layers]
    group = groups.tensor
    model = stage_model(plan.model, plan.execution, group, names)
    # Rows beyond the vocabulary are padding of this layout; the model never chooses them.
    fill(model, lambda spec, _: weights.read_shard("weight", spec, group.rank, group.size), groups.device)
    return model
