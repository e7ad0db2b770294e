"""The Kubernetes manifests: against the schemas of Kubernetes, and their parts against each other."""

from __future__ import annotations

import copy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate import validate as validate_manifest

from tests.launch.launch_fixtures import LAUNCH
from trainer import errors
from trainer.config.compose import compose
from trainer.config.validate import problems

FOLDER = LAUNCH / "kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
VERSION = "1.31"
Manifest = dict[str, Any]


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def patched(manifest: Manifest, patch: list[Manifest]) -> Manifest:
    """Apply `add` and `replace` of a JSON patch; what is replaced must exist, what is added must not."""
    result = copy.deepcopy(manifest)
    for step in patch:
        *parents, last = step["path"].strip("/").split("/")
        place: Any = result
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        assert (last in place) == (step["op"] == "replace"), step["path"]
        place[last] = step["value"]
    return result


def images_set(manifest: Any, tags: dict[str, str]) -> Any:
    if isinstance(manifest, list):
        return [images_set(item, tags) for item in manifest]
    if not isinstance(manifest, dict):
        return manifest
    changed = {key: images_set(value, tags) for key, value in manifest.items()}
    if isinstance(changed.get("image"), str) and changed["image"] in tags:
        changed["image"] = f"{changed['image']}:{tags[changed['image']]}"
    return changed


def render(overlay: str) -> dict[str, Manifest]:
    """Do what kustomize does with what the overlays use of it. Returns the objects by kind."""
    folder = FOLDER / "overlays" / overlay
    kustomization = load(folder / "kustomization.yaml")
    (base_name,) = kustomization["resources"]
    base = load(folder / base_name / "kustomization.yaml")
    objects = {load(folder / base_name / name)["kind"]: load(folder / base_name / name) for name in base["resources"]}
    literals: dict[str, str] = {}
    for generator in [*base["configMapGenerator"], *kustomization.get("configMapGenerator", [])]:
        assert generator["name"] == "trident-environment"
        literals.update(literal.split("=", 1) for literal in generator["literals"])
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "trident-environment"}}
    objects["ConfigMap"] = {**config_map, "data": literals}
    for patch in kustomization["patches"]:
        target = patch["target"]
        assert objects[target["kind"]]["metadata"]["name"] == target["name"]
        objects[target["kind"]] = patched(objects[target["kind"]], load(folder / patch["path"]))
    tags = {image["name"]: image["newTag"] for image in kustomization["images"]}
    return {kind: images_set(manifest, tags) for kind, manifest in objects.items()}


def job_of(overlay: str) -> Manifest:
    spec: Manifest = render(overlay)["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    return spec


def trainer_of(overlay: str) -> Manifest:
    (container,) = job_of(overlay)["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_knows_every_field(overlay: str) -> None:
    objects = render(overlay)
    validate_manifest(objects["PersistentVolumeClaim"], VERSION, strict=True)
    validate_manifest(objects["ConfigMap"], VERSION, strict=True)
    # The schema of a JobSet is not Kubernetes' own, but the Job in it is.
    metadata = {"name": "node"}
    validate_manifest(
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": job_of(overlay)}, VERSION, strict=True
    )


def test_a_mistyped_field_is_found() -> None:
    spec = job_of("one-node")
    spec["backofLimit"] = spec.pop("backoffLimit")
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "node"}, "spec": spec}
    with pytest.raises(Exception, match="backofLimit"):
        validate_manifest(job, VERSION, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_jobset_has_only_fields_that_jobsets_have(overlay: str) -> None:
    manifest = render(overlay)["JobSet"]
    assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    spec = manifest["spec"]
    assert set(spec) == {"network", "failurePolicy", "replicatedJobs"}
    assert set(spec["network"]) == {"enableDNSHostnames", "subdomain"}
    assert set(spec["failurePolicy"]) == {"maxRestarts", "rules"}
    for rule in spec["failurePolicy"]["rules"]:
        assert set(rule) == {"action", "onJobFailureReasons"}
        assert rule["action"] in ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
    (job,) = spec["replicatedJobs"]
    assert set(job) == {"name", "replicas", "template"}
    assert job["replicas"] == 1


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nodes_ranks_and_names_agree(overlay: str) -> None:
    objects = render(overlay)
    jobset, variables, job = objects["JobSet"], objects["ConfigMap"]["data"], job_of(overlay)
    assert int(variables["NNODES"]) == job["completions"] == job["parallelism"]
    name = jobset["spec"]["replicatedJobs"][0]["name"]
    first = f"{jobset['metadata']['name']}-{name}-0-0.{jobset['spec']['network']['subdomain']}"
    assert variables["MASTER_ADDR"] == first
    assert [int(variables["MASTER_PORT"])] == [port["containerPort"] for port in trainer_of(overlay)["ports"]]
    gpus = trainer_of(overlay)["resources"]["limits"].get("nvidia.com/gpu")
    per_node = variables.get("RANKS_PER_NODE")
    if job["completions"] > 1:
        assert per_node == gpus or (gpus is None and per_node)
    # What the image's user writes must be in a volume.
    pod = job["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in trainer_of(overlay)["volumeMounts"]}
    assert mounts == {"runs": "/runs", "shm": "/dev/shm", "tmp": "/tmp"}
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
    claim = next(volume for volume in pod["volumes"] if volume["name"] == "runs")["persistentVolumeClaim"]["claimName"]
    assert claim == objects["PersistentVolumeClaim"]["metadata"]["name"]
    assert pod["securityContext"]["runAsUser"] == 10001
    sources = trainer_of(overlay)["envFrom"]
    assert sources[0]["configMapRef"]["name"] == objects["ConfigMap"]["metadata"]["name"]
    assert sources[1]["secretRef"]["optional"] is True


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_trained_composes_for_so_many_ranks(overlay: str) -> None:
    verb, *words = trainer_of(overlay)["args"]
    assert verb == "train"
    config = compose(words)
    ranks = int(trainer_of(overlay)["resources"]["limits"].get("nvidia.com/gpu", "2")) * job_of(overlay)["completions"]
    assert problems(config, ranks) == []
    assert config.run_dir.startswith("/runs/")
    image = trainer_of(overlay)["image"]
    assert image == f"trident:{'cpu' if overlay == 'cpu-smoke' else 'cuda'}"


def test_exit_codes_are_ours() -> None:
    rules = job_of("one-node")["podFailurePolicy"]["rules"]
    by_action = {
        (rule["action"], code) for rule in rules if "onExitCodes" in rule for code in rule["onExitCodes"]["values"]
    }
    hopeless = (errors.ConfigError, errors.CheckpointError, errors.NumericsError, errors.OutOfMemoryError)
    failing = {("FailJob", kind.exit_code) for kind in (*hopeless, errors.StorageError)}
    assert by_action == {("Ignore", errors.Preempted.exit_code)} | failing
    assert job_of("one-node")["template"]["spec"]["restartPolicy"] == "Never"
    assert all(rule.get("onExitCodes", {}).get("containerName", "trainer") == "trainer" for rule in rules)


def test_every_patch_meets_an_object_of_its_overlay() -> None:
    used = {
        FOLDER / "overlays" / overlay / patch["path"]
        for overlay in OVERLAYS
        for patch in load(FOLDER / "overlays" / overlay / "kustomization.yaml")["patches"]
    }
    files = set((FOLDER / "overlays").rglob("*.yaml"))
    assert files == used | {path for path in files if path.name == "kustomization.yaml"}
    with pytest.raises(AssertionError, match="/spec/nothing"):
        patched({"spec": {}}, [{"op": "replace", "path": "/spec/nothing", "value": 1}])


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_makes_the_same_of_it(overlay: str) -> None:
    command = ["kubectl", "kustomize", str(FOLDER / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert {manifest["kind"]: manifest for manifest in yaml.safe_load_all(done.stdout)} == render(overlay)
