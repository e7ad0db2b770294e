from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.house.checks import Module, cycles, imports, layering, named_imports, outside, reached_at_start, read_modules

ORDER = (
    "errors",
    "files",
    "log",
    "garbage",
    "run_paths",
    "progress",
    "interruption",
    "picture_file",
    "versions",
    "machine",
    "hardware",
    "devices",
    "run_events",
    "restarts",
    "spec",
    "mesh",
    "families",
    "config",
    "oracle",
    "corpus",
    "topology",
    "micro_batch",
    "data",
    "kernels",
    "tensor_parallel",
    "model",
    "pipeline",
    "engine",
    "planner",
    "loop",
    "interchange",
    "checkpoint",
    "metrics",
    "inspection",
    "launcher",
    "inference",
    "generation",
    "samples",
    "evaluation",
    "profiling",
    "description",
    "run_folder",
    "new_run",
    "resharding",
    "transformers_loading",
    "logits_check",
    "gguf_file",
    "model_card",
    "importing",
    "exporting",
    "balance",
    "calibration",
    "proving",
    "beginning",
    "out_of_memory",
    "supervise",
    "dry_run",
    "settling",
    "buying",
    "planning",
    "records",
    "auditing",
    "comparing",
    "watching",
    "migration",
    "sweeps",
    "doctor",
    "reporting",
    "preflight",
    "app",
    "errands",
    "verbs",
    "cli",
    "__main__",
)
"""Rooms of the house from the ground up: each imports only from rooms below it."""

LOW = {
    *("config", "corpus", "topology", "data", "kernels", "tensor_parallel", "model", "pipeline", "engine", "planner"),
    "loop",
}
NOT_PLANNED = {"checkpoint", "metrics", "generation", "samples", "profiling", "resharding", "balance", "supervise"}
APART = {
    "log": {"files"},
    "families": {"files", "log", "run_paths", "spec", "mesh"},
    "oracle": {"files", "log", "garbage", "machine", "hardware", "devices", "spec", "mesh", "families"},
    "interchange": LOW - {"tensor_parallel"} | {"files", "log", "mesh"},
    "corpus": {"spec", "mesh"},
    "topology": {"config", "corpus", "files"},
    "data": {"topology"},
    "kernels": {"topology", "corpus", "data", "files"},
    "tensor_parallel": {"config", "corpus", "data", "files"},
    "model": {"corpus", "data", "files"},
    "pipeline": {"corpus", "data"},
    "planner": {"topology", "corpus", "data", "tensor_parallel", "engine"},
    "metrics": {"checkpoint"},
    "inspection": LOW - {"config", "corpus", "data"} | {"metrics"},
    "launcher": LOW | {"checkpoint", "metrics", "inspection"},
    "inference": {"engine", "planner", "loop", "metrics", "launcher"},
    "generation": {"engine", "planner", "loop", "metrics", "launcher"},
    "evaluation": {"planner", "launcher"},
    "samples": {"pipeline", "planner", "launcher", "checkpoint"},
    "profiling": LOW - {"config", "topology", "loop"} | {"checkpoint", "launcher", "generation", "samples"},
    "description": LOW - {"config", "model", "pipeline", "planner"}
    | {"checkpoint", "metrics", "launcher", "profiling"},
    "run_folder": LOW - {"config"} | {"metrics", "generation", "samples", "profiling", "description"},
    "resharding": LOW - {"config"} | {"metrics", "launcher", "generation", "samples", "profiling"},
    "balance": {"planner", "loop", "checkpoint", "metrics", "generation", "samples", "profiling", "resharding"},
    "calibration": {
        *("corpus", "data", "tensor_parallel", "model", "pipeline", "loop", "interchange", "checkpoint", "metrics"),
        *(
            "inference",
            "generation",
            "samples",
            "evaluation",
            "profiling",
            "description",
            "run_folder",
            "resharding",
            "balance",
        ),
    },
    "proving": {
        *("corpus", "data", "planner", "loop", "interchange", "checkpoint", "metrics", "inference", "generation"),
        *("samples", "evaluation", "profiling", "description", "run_folder", "resharding", "balance", "calibration"),
    },
    "beginning": {"balance", "calibration", "loop", "checkpoint", "generation", "profiling", "resharding"},
    "supervise": {"balance", "calibration", "loop", "checkpoint", "generation", "samples", "profiling", "resharding"},
    "settling": LOW - {"config", "planner"} | NOT_PLANNED | {"calibration"},
    "buying": LOW - {"config", "planner"} | NOT_PLANNED | {"calibration"},
    "planning": LOW - {"config", "planner"} | NOT_PLANNED,
    "watching": LOW - {"config"} | {"checkpoint", "calibration", "run_folder", *(NOT_PLANNED - {"metrics"})},
    "comparing": LOW - {"config"} | {"checkpoint", "calibration", *(NOT_PLANNED - {"metrics"})},
    "records": LOW - {"config", "data"} | {"checkpoint", "calibration", "run_folder", *(NOT_PLANNED - {"metrics"})},
    "migration": LOW - {"config"} | NOT_PLANNED | {"launcher", "interchange", "run_folder", "description"},
    "sweeps": LOW - {"config"}
    | {"checkpoint", "generation", "samples", "profiling", "resharding", "balance", "supervise"},
    "doctor": LOW - {"config", "engine"} | NOT_PLANNED - {"metrics"} | {"calibration"},
    "app": {"generation", "resharding", "balance", "supervise", "sweeps"},
    "errands": {
        *("corpus", "data", "kernels", "tensor_parallel", "pipeline", "planner", "loop", "checkpoint", "metrics"),
        *("profiling", "description", "run_folder", "resharding", "balance", "beginning", "supervise", "sweeps", "app"),
        *("samples", "generation", "evaluation"),
    },
    "cli": LOW - {"config"} | {"launcher", "checkpoint", "metrics", "generation", "samples", "profiling", "app"},
}
"""Rooms that the order would let in, but that a room has no business with."""

NO_TORCH = (
    *(
        "errors",
        "files",
        "log",
        "garbage",
        "progress",
        "interruption",
        "picture_file",
        "versions",
        "machine",
        "hardware",
        "devices",
        "run_events",
        "restarts",
        "spec",
        "mesh",
        "families",
        "config",
        "planner",
        "inspection",
        "launcher",
        "description",
        "run_folder",
        "new_run",
        "resharding",
        "model_card",
        "importing",
        "exporting",
        "balance",
        "beginning",
        "supervise",
        "settling",
        "buying",
        "planning",
        "records",
        "comparing",
        "watching",
        "migration",
        "sweeps",
        "reporting",
        "verbs",
        "cli",
    ),
    *(
        *("corpus.document", "corpus.units", "corpus.wording", "corpus.hub_split", "corpus.inputs", "corpus.cutting"),
        "data.capacity",
        "data.sampler",
        "data.dataset",
        "data.tokenizer",
        "data.token_manifest",
        "data.picks",
        "data.blending",
        "data.stream_order",
        "data.stream_plan",
        "inference.key_words",
        "inference.model_source",
        "evaluation.evaluate_options",
        "evaluation.task_names",
        "generation.options",
        "generation.other_option_names",
        "generation.prompts",
        "generation.text",
        "generation.task",
        "data.chat_template",
        "samples.check",
    ),
    *("profiling.names", "profiling.intervals", "profiling.breakdown", "profiling.measured_step", "profiling.spans"),
    *(
        *("calibration.calibrate", "calibration.device_profile", "calibration.fit", "calibration.measurements"),
        *("calibration.measuring", "calibration.trials"),
        *("proving.parity", "proving.scaled_model", "proving.scaled_run", "proving.proof_trials"),
        "checkpoint.store",
        "checkpoint.manifest",
        "checkpoint.origin",
        "checkpoint.inspect",
        "interchange.weight_index",
        "model.limits",
        "pipeline.partition",
        "engine.adam",
        *(
            "doctor.asking",
            "doctor.compiler_checks",
            "doctor.disk_checks",
            "doctor.doctor",
            "doctor.doctor_screen",
            "doctor.examine",
            "doctor.finding",
            "doctor.gpu_checks",
            "doctor.host_checks",
            "doctor.limit_checks",
            "doctor.network_checks",
            "doctor.peer_checks",
            "doctor.tried_folders",
            "doctor.progress_checks",
            "doctor.required",
            "doctor.service_checks",
            "doctor.software_checks",
            "doctor.surroundings",
        ),
    ),
)
"""Rooms and modules that never import torch and its like: what a person waits for before a rank starts."""
HEAVY = ("torch", "deepspeed", "transformers", "datasets", "safetensors", "wandb")


@pytest.fixture(scope="module")
def modules() -> list[Module]:
    return read_modules()


def made_up(**sources: str) -> list[Module]:
    """Modules by their name below the package, `__` for the dot."""
    names = {name.replace("__", ".") if not name.startswith("_") else name for name in sources}
    packages = {"trainer"} | {f"trainer.{name.split('.')[0]}" for name in names if "." in name}
    found = [Module(name, "", is_package=True) for name in sorted(packages)]
    return found + [Module(f"trainer.{name.replace('__', '.')}", text) for name, text in sources.items()]


def test_it_reads_the_real_house(modules: Sequence[Module]) -> None:
    assert {"trainer.cli", "trainer.config.schema", "trainer.engine"} <= {module.name for module in modules}
    assert next(module for module in modules if module.name == "trainer.engine").is_package


def test_rooms_import_only_from_rooms_below_them(modules: Sequence[Module]) -> None:
    assert layering(modules, ORDER, APART) == []


@pytest.mark.parametrize(
    "text",
    [
        "from trainer.engine.build import build_engine",
        "import trainer.engine.build",
        "from trainer import engine",
        "from ..engine import build",
        "def lazily():\n    from trainer.engine import build",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from trainer.engine import build",
    ],
)
def test_an_import_from_above_is_found(text: str) -> None:
    found = layering(made_up(config__plan=text, engine__build=""), ORDER, APART)
    assert found == [
        f"trainer.config.plan:{len(text.splitlines())}: config must not import from engine, which is above"
    ]


def test_an_import_from_below_is_fine() -> None:
    text = "import trainer\nfrom trainer import __version__\nfrom trainer.errors import X\nfrom trainer.config import y"
    assert layering(made_up(config__plan=text, errors="", config__y="", cli=text), ORDER, APART) == []


def test_rooms_that_are_kept_apart() -> None:
    found = layering(made_up(metrics__row="from trainer.checkpoint.store import x", checkpoint__store=""), ORDER, APART)
    assert found == ["trainer.metrics.row:1: metrics must know nothing of checkpoint"]


def test_the_oracle_knows_of_the_house_only_its_keys(modules: Sequence[Module]) -> None:
    names = {module.name for module in modules}
    known = {found.target for module in modules if module.room == "oracle" for found in imports(module, names)}
    ours = {name for name in known if name.startswith("trainer.") and not name.startswith("trainer.oracle")}
    assert ours == {"trainer.config.schema"}


def test_a_new_room_needs_a_place() -> None:
    assert layering(made_up(attic__box=""), ORDER, APART) == [
        "trainer.attic: 'attic' has no place in the order of rooms",
        "trainer.attic.box: 'attic' has no place in the order of rooms",
    ]


def test_apart_names_only_rooms() -> None:
    assert set(APART) <= set(ORDER)
    assert all(ORDER.index(other) < ORDER.index(room) for room, others in APART.items() for other in others)


def test_no_import_cycles(modules: Sequence[Module]) -> None:
    assert cycles(modules) == []


def test_a_cycle_is_found_and_told_once() -> None:
    ring = {"data__a": "from trainer.data.b import x", "data__b": "from trainer.data import c"}
    assert cycles(made_up(**ring, data__c="import trainer.data.a")) == [
        "trainer.data.a -> trainer.data.b -> trainer.data.c -> trainer.data.a"
    ]
    assert cycles(made_up(**ring, data__c="def f():\n    import trainer.data.a")) == []
    lazy = "import typing\nif typing.TYPE_CHECKING:\n    import trainer.data.a"
    assert cycles(made_up(**ring, data__c=lazy)) == []


def test_deepspeed_is_imported_only_where_it_is_driven(modules: Sequence[Module]) -> None:
    assert outside(modules, "deepspeed", ("pipeline", "engine", "checkpoint", "doctor.software_probe")) == []


def test_wandb_is_imported_only_by_its_sink(modules: Sequence[Module]) -> None:
    assert outside(modules, "wandb", ("metrics.wandb_sink",)) == []


def test_optuna_is_imported_only_where_points_are_searched(modules: Sequence[Module]) -> None:
    assert outside(modules, "optuna", ("sweeps.search",)) == []


def test_the_harness_is_imported_only_where_tasks_are_run(modules: Sequence[Module]) -> None:
    assert outside(modules, "lm_eval", ("evaluation",)) == []


def test_a_library_outside_its_place_is_found() -> None:
    texts = made_up(
        loop__a="def f():\n    import wandb.sdk", metrics__wandb_sink="import wandb", metrics__b="import wandb"
    )
    assert outside(texts, "wandb", ("metrics.wandb_sink",)) == [
        "trainer.loop.a:2: wandb must not be imported here",
        "trainer.metrics.b:1: wandb must not be imported here",
    ]
    assert outside(texts, "wandb", ("metrics", "loop")) == []
    assert outside(made_up(launcher__a="command = 'deepspeed'\nimport deepspeeder"), "deepspeed", ()) == []


def test_what_answers_before_the_ranks_start_reaches_no_torch(modules: Sequence[Module]) -> None:
    assert reached_at_start(modules, NO_TORCH, HEAVY) == []


def test_torch_is_found_however_it_comes_in() -> None:
    direct = made_up(config__plan="def f():\n    import torch.cuda")
    assert reached_at_start(direct, NO_TORCH, HEAVY) == ["trainer.config.plan:2: torch.cuda must not be imported"]
    texts = {"cli": "from trainer.loop import state", "loop__state": "from trainer.loop.x import y"}
    assert reached_at_start(made_up(**texts, loop__x="import torch"), NO_TORCH, HEAVY) == [
        "trainer.cli -> trainer.loop.state -> trainer.loop.x:1: imports torch"
    ]
    assert reached_at_start(made_up(**texts, loop__x="def f():\n    import torch"), NO_TORCH, HEAVY) == []
    lazy = {**texts, "cli": "def f():\n    from trainer.loop import state"}
    assert reached_at_start(made_up(**lazy, loop__x="import torch"), NO_TORCH, HEAVY) == []


def test_the_torch_free_list_names_what_exists(modules: Sequence[Module]) -> None:
    places = {module.name.removeprefix("trainer.") for module in modules} | {"planner"}
    assert set(NO_TORCH) <= places


def test_the_model_knows_no_whole_config(modules: Sequence[Module]) -> None:
    for room in ("model", "tensor_parallel", "topology"):
        assert named_imports(modules, room, ("TridentConfig", "RunPlan", "LayoutConfig")) == []


def test_a_whole_config_in_the_model_is_found() -> None:
    texts = made_up(model__gpt="from trainer.config.plan import data_parallel_size, RunPlan")
    assert named_imports(texts, "model", ("RunPlan",)) == ["trainer.model.gpt:1: model must not know RunPlan"]


NAMED_AFTER_A_VERB = "verbs"


def test_no_two_files_have_one_name(modules: Sequence[Module]) -> None:
    assert twins([module.name for module in modules if not module.is_package]) == []


def test_two_files_of_one_name_are_found() -> None:
    assert twins(["trainer.data.hook", "trainer.metrics.hook", "trainer.verbs.hook", "trainer.log"]) == ["hook"]


def twins(names: Sequence[str]) -> list[str]:
    """Return the last parts that two modules share; a file in verbs/ is named after its verb."""
    last = [name.rpartition(".")[2] for name in names if name.split(".")[1] != NAMED_AFTER_A_VERB]
    return sorted({name for name in last if last.count(name) > 1})
