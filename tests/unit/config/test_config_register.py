from __future__ import annotations

import dataclasses
from typing import get_type_hints

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, ValidationError

from trainer.config.keys import GROUPS, KEYS, OWNERS
from trainer.config.register import SCHEMA_NAME, enum_twin, mutable_twin, register
from trainer.config.schema import PipelineSchedule, TridentConfig


def test_twin_is_mutable_and_has_the_same_keys_and_defaults() -> None:
    tree = OmegaConf.to_container(OmegaConf.structured(mutable_twin(TridentConfig)), enum_to_str=True)
    assert isinstance(tree, dict)
    groups = {f"{group}.{leaf}" for group in GROUPS for leaf in tree[group]}
    parts = {f"{part}.{leaf}" for part in groups & set(OWNERS) for leaf in tree["model"][part.partition(".")[2]]}
    assert (groups | parts | set(tree)) - set(OWNERS) == set(KEYS)
    assert "model.rope_scaling.factor" in parts
    assert tree["layout"]["pipeline_schedule"] == "1f1b"
    assert tree["data"]["files"] == []
    mutable_twin(TridentConfig)().name = "changed"


def test_twin_of_a_nested_class_is_shared() -> None:
    hints = get_type_hints(mutable_twin(TridentConfig))
    for group, kind in GROUPS.items():
        assert hints[group] is mutable_twin(kind)
        assert not mutable_twin(kind).__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert dataclasses.is_dataclass(hints[group])


def test_enum_twin_is_read_by_value() -> None:
    assert [member.name for member in enum_twin(PipelineSchedule)] == ["1f1b", "dualpipev"]


def test_schema_refuses_unknown_keys_types_and_choices() -> None:
    register()
    schema = OmegaConf.create(ConfigStore.instance().load(f"{SCHEMA_NAME}.yaml").node)
    OmegaConf.update(schema, "layout.pipeline_schedule", "dualpipev")
    with pytest.raises(ConfigKeyError):
        OmegaConf.merge(schema, {"model": {"hiden_size": 3}})
    with pytest.raises(ValidationError):
        OmegaConf.merge(schema, {"optimizer": {"lr": "abc"}})
    with pytest.raises(ValidationError, match=r"one of \[fp32, bf16, fp16\]"):
        OmegaConf.merge(schema, {"precision": {"dtype": "half"}})
