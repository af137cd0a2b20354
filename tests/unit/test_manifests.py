"""The manifests of cluster/: each field is known to what reads it, each size, label and second to the configuration.

Every key is misspelt once, and must be found: by KubeRay's schemas where they lie beside the checkout, by those of
Kubernetes, by Ray's own for `ray up`, for Serve and for `ray start`, and by our configuration and command line.
"""

from __future__ import annotations

import copy
import json
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import ray
import yaml
from misspelt import misspelt
from ray.runtime_env import RuntimeEnv
from ray.scripts.scripts import start
from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from pipelines.submit.server import MARGIN_S, STOP_WAIT
from vsr1.config import Config, ConfigError, load_config
from vsr1.settings.parts import NodeGroup

REPOSITORY = Path(__file__).parents[2]
KUBERAY = REPOSITORY / "cluster/kuberay"
CRDS = next((parent / "shared/crds" for parent in REPOSITORY.parents if (parent / "shared/crds").is_dir()), None)
GIB = 2**30
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
GIVEN_UP = {  # a node without power, after 3 to 9 s; docs/cluster.md names the same
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
RESOURCES = {"cpu", "memory", "nvidia.com/gpu", "storage"}
LABELS = {"ray.io/cluster", "ray.io/node-type", "ray.io/group", "release"}
POD_MONITOR = {
    "apiVersion": {"const": "monitoring.coreos.com/v1"},
    "kind": {"const": "PodMonitor"},
    "metadata": {"type": "object"},
    "spec": {
        "type": "object",
        "required": ["selector", "podMetricsEndpoints"],
        "properties": {
            "selector": {
                "properties": {
                    "matchExpressions": {
                        "items": {
                            "required": ["key", "operator", "values"],
                            "properties": {"key": {}, "operator": {"enum": ["In", "NotIn"]}, "values": {}},
                        }
                    }
                }
            },
            "podMetricsEndpoints": {
                "items": {
                    "properties": {
                        "port": {"const": "metrics"},
                        "interval": {"pattern": "^[0-9]+s$"},
                        "relabelings": {
                            "items": {
                                "properties": {
                                    "action": {"const": "replace"}, "sourceLabels": {}, "targetLabel": {},
                                }
                            }
                        },
                    }
                }
            },
        },
    },
}  # fmt: skip

Document = dict[str, Any]


def documents() -> list[Document]:
    files = sorted(KUBERAY.glob("*.yaml"))
    return [document for file in files for document in yaml.safe_load_all(file.read_text(encoding="utf-8"))]


def named(kind: str, name: str) -> Document:
    [document] = [one for one in documents() if one["kind"] == kind and one["metadata"]["name"] == name]
    return document


def strict(schema: Any) -> Any:
    """The schema with unknown keys refused, as the API server's strict validation does."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: strict(part) for name, part in schema.items()}
    if isinstance(closed.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


@pytest.fixture(scope="module")
def check() -> Callable[[Document], list[str]]:
    """Returns the faults of a document."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    if CRDS is None:
        pytest.skip("KubeRay's schemas are not beside the checkout")
    of_kind = {
        "PodMonitor": jsonschema_rs.validator_for(strict({"properties": POD_MONITOR, "required": list(POD_MONITOR)}))
    }
    for kind in ("RayCluster", "RayJob", "RayService"):
        schema = json.loads((CRDS / f"{kind.lower()}s.v1.json").read_text(encoding="utf-8"))["schema"]
        required = {"required": ["apiVersion", "kind", "metadata", "spec"]}
        of_kind[kind] = jsonschema_rs.validator_for(strict(schema) | required)

    def faults(document: Document) -> list[str]:
        kind = document.get("kind", "")
        if kind in of_kind:
            lines = [error.message for error in of_kind[kind].iter_errors(document)]
        else:
            try:
                kubernetes_validate.validate(document, "1.37", strict=True)
                lines = []
            except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
                lines = [str(error)]
            except KeyError as error:
                lines = [f"no {error}"]
        return lines or list(unknown_names(document))

    return faults


def unknown_names(document: Any, path: str = "") -> Iterator[str]:
    """Yield what no schema of Kubernetes knows: names in maps that it leaves open, and texts with their own form."""
    for name, value in document.items():
        known: set[str] | None = {
            "metadata": {"name", "labels"},
            "rayStartParams": {option.replace("_", "-") for option in (one.name for one in start.params)},
            "requests": RESOURCES,
            "limits": RESOURCES,
            "clusterSelector": LABELS,
            "matchLabels": LABELS,
            "labels": {"pool"} if "workerGroupSpecs" in path else LABELS,
        }.get(name)
        if known is not None:
            yield from (f"{path}.{name}: unknown {key}" for key in value.keys() - known)
            if name == "metadata" and "name" not in value:
                yield "no name"
        if name == "runtimeEnvYAML":
            yield from runtime_faults(value)
        elif name == "entrypoint":
            yield from entrypoint_faults(value)
        elif name == "serveConfigV2":
            yield from serve_faults(value)
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                yield from unknown_names(part, f"{path}.{name}")


def runtime_faults(text: str) -> Iterator[str]:
    values = yaml.safe_load(text)
    yield from (f"unknown {key}" for key in values.keys() - RuntimeEnv.known_fields)
    yield from (f"unknown variable {key}" for key in values.get("env_vars", {}).keys() - {STOP_WAIT})


def serve_faults(text: str) -> Iterator[str]:
    values = yaml.safe_load(text)
    try:
        ServeDeploySchema.model_validate(values)
        for application in values["applications"]:
            Config.model_validate(application["args"])
    except (ValueError, KeyError) as error:
        yield str(error)
    levels = [(values, ServeDeploySchema), (values.get("http_options", {}), HTTPOptionsSchema)]
    levels += [(application, ServeApplicationSchema) for application in values.get("applications", [])]
    for level, schema in levels:
        yield from (f"unknown {key}" for key in level.keys() - schema.model_fields.keys())


def config_of(job: Document) -> Config:
    """The configuration that the command of a job reads, its files taken from here."""
    words = shlex.split(job["spec"]["entrypoint"].replace("/app/", f"{REPOSITORY}/"))
    files = [Path(words[i + 1]) for i, word in enumerate(words) if word == "-c"]
    return load_config(files, [word for word in words if "=" in word])


def entrypoint_faults(text: str) -> Iterator[str]:
    words = shlex.split(text)
    if words[:5] != ["exec", "python", "-m", "pipelines", "job"] or words[5] not in ("data", "sft", "grpo", "eval"):
        yield f"{text[:60]} is not a job of ours"
    try:
        config_of({"spec": {"entrypoint": text}})
    except (ConfigError, IndexError) as error:
        yield str(error)


@pytest.mark.parametrize("document", documents(), ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_a_manifest_is_valid_and_no_key_of_it_could_be_another(
    check: Callable[[Document], list[str]], document: Document
) -> None:
    assert check(document) == []
    count = 0
    for path, changed in misspelt(document):
        if ".corpora." in path and path.endswith(".charades"):
            continue  # a name of ours
        assert check(changed), f"{path} misspelt was not seen"
        count += 1
    assert count > 5


def test_an_entrypoint_with_an_unknown_setting_is_found(check: Callable[[Document], list[str]]) -> None:
    job = named("RayJob", "vsr1-grpo")
    for old, new in (("data.root", "data.rood"), ("spot.yaml", "spots.yaml"), (" job ", " jobs ")):
        wrong = copy.deepcopy(job)
        wrong["spec"]["entrypoint"] = job["spec"]["entrypoint"].replace(old, new)
        assert check(wrong), new


RECIPE = load_config(REPOSITORY / "configs/recipes/spot.yaml")


def groups(spec: Document) -> dict[str, Document]:
    return {group["groupName"]: group for group in spec["workerGroupSpecs"]}


@pytest.mark.parametrize("name", RECIPE.cluster.nodes)
def test_a_group_of_nodes_is_that_of_the_recipe(name: str) -> None:
    group, node = groups(named("RayCluster", "vsr1")["spec"])[name], RECIPE.cluster.nodes[name]
    check_group(group, node, RECIPE.cluster.object_store_gib, drain_s=RECIPE.fleet.drain_s)
    assert (group["maxReplicas"], group["labels"]) == (node.count, node.labels)
    assert node.autoscaled and group["minReplicas"] == 0


def check_group(group: Document, node: NodeGroup, store_gib: float, drain_s: float) -> None:
    start, pod = group["rayStartParams"], group["template"]["spec"]
    [container] = pod["containers"]
    size = container["resources"]["requests"]
    memory = {"memory": node.memory_gib, "object-store-memory": store_gib}
    assert (float(start["num-cpus"]), float(start.get("num-gpus", 0))) == (node.cpus, node.gpus)
    assert {name: int(start[name]) / GIB for name in memory} == memory
    assert size == container["resources"]["limits"] and size.get("nvidia.com/gpu", 0) == node.gpus
    assert size["cpu"] >= node.cpus and gib(size["memory"]) >= sum(memory.values())
    [shared] = [volume for volume in pod["volumes"] if "emptyDir" in volume]
    assert shared["emptyDir"]["medium"] == "Memory" and gib(shared["emptyDir"]["sizeLimit"]) >= store_gib
    assert {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}[shared["name"]] == "/dev/shm"
    assert float({one["name"]: one["value"] for one in container["env"]}[DRAIN]) == drain_s
    assert pod["terminationGracePeriodSeconds"] == drain_s + 30, "the drain, and Ray's own end"
    assert container["image"].endswith("-gpu" if node.gpus else "-cpu")


def gib(text: str) -> float:
    assert text.endswith("Gi")
    return float(text[:-2])


def test_every_head_gives_a_node_up_as_the_documentation_says_and_ray_knows_the_settings() -> None:
    words = [f"{name}={value}" for name, value in GIVEN_UP.items()]
    for file in ("docs/cluster.md", "cluster/ray-up.yaml"):
        assert " ".join(words) in (REPOSITORY / file).read_text(encoding="utf-8"), file
    core = (Path(ray.__file__).parent / "_raylet.so").read_bytes()
    for name in GIVEN_UP:
        assert name.removeprefix("RAY_").encode() in core, name


@pytest.mark.parametrize("stage", ["data", "sft", "grpo", "eval"])
def test_a_job_has_the_time_to_save_and_paths_that_its_pods_mount(stage: str) -> None:
    job, cluster = named("RayJob", f"vsr1-{stage}"), named("RayCluster", "vsr1")
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    config = config_of(job)
    wait = int(RECIPE.fleet.stop_s + MARGIN_S)
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"] == {STOP_WAIT: str(wait)}
    assert cluster["spec"]["headGroupSpec"]["template"]["spec"]["terminationGracePeriodSeconds"] == wait
    for path in (config.run_dir, config.data.root, config.model.policy, config.model.embedder):
        assert path.is_relative_to("/storage"), path
    if stage != "data":
        assert config.cluster.nodes == RECIPE.cluster.nodes


def test_stages_read_what_the_one_before_wrote() -> None:
    run = [config_of(named("RayJob", f"vsr1-{stage}")) for stage in ("sft", "grpo", "eval")]
    assert len({config.run_dir for config in run}) == 1 and len({config.data.root for config in run}) == 1
    for config, stage in zip(run[1:], ("sft", "grpo"), strict=True):
        assert config.model.policy == config.run_dir / "checkpoints" / stage


def test_the_service_fits_its_nodes_and_cuts_no_search() -> None:
    service = named("RayService", "vsr1-agent")["spec"]
    [application] = yaml.safe_load(service["serveConfigV2"])["applications"]
    config, [group] = Config.model_validate(application["args"]), service["rayClusterConfig"]["workerGroupSpecs"]
    limit_s, cluster = config.serve.request_limit_s, config.cluster
    node = NodeGroup(cpus=14, gpus=1, memory_gib=100)
    check_group(group, node, cluster.object_store_gib, drain_s=limit_s)
    assert service["rayClusterDeletionDelaySeconds"] >= limit_s + 30
    assert (group["minReplicas"], group["maxReplicas"]) == (config.serve.least_replicas, config.serve.most_replicas)
    assert cluster.rollout.gpus + cluster.retrieval.gpus <= 1
    assert config.serve.key_file, "it listens to all"
    shards = config.retrieval.shards * config.retrieval.replicas
    assert cluster.rollout.cpus + cluster.retrieval.cpus + shards * cluster.shard.cpus < node.cpus


def test_images_are_those_that_the_containerfile_builds() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (REPOSITORY / "cluster/Containerfile").read_text(encoding="utf-8").splitlines()
    [install] = [line for line in lines if "pip install" in line]
    extras = install.partition("[")[2].partition("]")[0].replace("${EXTRA},", "").split(",")
    built = {}
    for line in (line for line in lines if "podman build" in line):
        words = line.split()
        built[words[words.index("-t") + 1]] = words[words.index("--build-arg") + 1].removeprefix("EXTRA=")
    assert {*extras, *built.values()} <= set(project["optional-dependencies"])
    used = {
        line.split()[1]
        for file in KUBERAY.glob("*.yaml")
        for line in file.read_text().splitlines()
        if " image:" in line
    }
    assert used == built.keys() == {f"vsr1:{project['version']}-{extra}" for extra in built.values()}


def test_every_pod_shows_metrics_and_the_version_of_ray_is_ours() -> None:
    clusters = [named("RayCluster", "vsr1")["spec"], named("RayService", "vsr1-agent")["spec"]["rayClusterConfig"]]
    for spec in clusters:
        assert spec["rayVersion"] == ray.__version__
        assert spec["authOptions"] == {"mode": "token", "secretName": "vsr1-token"}
        [head] = spec["headGroupSpec"]["template"]["spec"]["containers"]
        assert GIVEN_UP.items() <= {one["name"]: one["value"] for one in head["env"]}.items()
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            [container] = group["template"]["spec"]["containers"]
            assert {"name": "metrics", "containerPort": 8080} in container["ports"]
    budgets = [one["spec"]["selector"]["matchLabels"] for one in documents() if one["kind"] == "PodDisruptionBudget"]
    selected = {labels.get("ray.io/group") for labels in budgets}
    assert selected - {None} <= {group["groupName"] for spec in clusters for group in spec["workerGroupSpecs"]}
