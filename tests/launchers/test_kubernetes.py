"""The Kubernetes file against the published schemas of Kubeflow Trainer, and what its pods would
run.
"""

import copy
from pathlib import Path

import pytest
import yaml

from lth_scale.config.resolution import parse

models = pytest.importorskip("kubeflow_trainer_api.models")

KINDS = {
    "PersistentVolumeClaim": models.IoK8sApiCoreV1PersistentVolumeClaim,
    "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
    "TrainJob": models.TrainerV1alpha1TrainJob,
}
FILE = Path(__file__).parents[2] / "launchers/kubernetes/trainjob.yaml"
DOCUMENTS = {document["kind"]: document for document in yaml.safe_load_all(FILE.read_text())}
RUNTIME, JOB = DOCUMENTS["TrainingRuntime"], DOCUMENTS["TrainJob"]
POD = RUNTIME["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"][
    "spec"
]


def is_valid(document: dict) -> bool:
    """True where the schema's model takes a document and gives it back whole: a key it does not
    know is lost.
    """
    model = KINDS[document["kind"]]
    try:
        return model.from_dict(copy.deepcopy(document)).to_dict() == document
    except ValueError:  # pydantic's: a type is wrong, or something is missing
        return False


def keys(part, path=()):
    """The paths of all keys of a document whose names a schema fixes; a mapping of free keys is not
    entered.
    """
    pairs = (
        part.items()
        if isinstance(part, dict)
        else enumerate(part)
        if isinstance(part, list)
        else ()
    )
    for key, value in pairs:
        if isinstance(part, dict):
            yield (*path, key)
        if key not in ("labels", "limits", "requests"):
            yield from keys(value, (*path, key))


def misspelt(document: dict, path: tuple) -> dict:
    """A copy in which one key has a letter more."""
    document = copy.deepcopy(document)
    part = document
    for step in path[:-1]:
        part = part[step]
    part[path[-1] + "x"] = part.pop(path[-1])
    return document


@pytest.mark.parametrize("kind", KINDS)
def test_every_manifest_is_valid_by_its_published_schema(kind):
    assert is_valid(DOCUMENTS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_misspelt_key_is_an_error(kind):
    paths = [path for path in keys(DOCUMENTS[kind]) if path != ("kind",)]
    assert len(paths) >= 7
    assert [path for path in paths if is_valid(misspelt(DOCUMENTS[kind], path))] == []


def test_a_wrong_type_is_an_error():
    wrong = copy.deepcopy(JOB)
    wrong["spec"]["trainer"]["numNodes"] = "four"
    assert not is_valid(wrong)


def test_the_manifests_refer_to_each_other():
    assert JOB["spec"]["runtimeRef"] == {
        "kind": RUNTIME["kind"],
        "name": RUNTIME["metadata"]["name"],
    }
    claim = next(
        volume["persistentVolumeClaim"]["claimName"]
        for volume in POD["volumes"]
        if volume["name"] == "runs"
    )
    assert claim == DOCUMENTS["PersistentVolumeClaim"]["metadata"]["name"]
    mounts = [mount["name"] for mount in POD["containers"][0]["volumeMounts"]]
    assert mounts == [volume["name"] for volume in POD["volumes"]]
    trainer = JOB["spec"]["trainer"]
    assert "memory" in trainer["resourcesPerNode"]["limits"]
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == str(trainer["numProcPerNode"])


def test_a_pod_runs_a_search_that_writes_to_the_volume(monkeypatch):
    from torch.distributed.run import parse_args

    given = {
        "NNODES": "4",
        "NPROC_PER_NODE": "8",
        "NODE_RANK": "1",
        "MASTER_ADDR": "node-0",
        "MASTER_PORT": "29500",
    }
    for name, value in given.items():  # as Trainer's torch plugin sets them
        monkeypatch.setenv(f"PET_{name}", value)
    assert JOB["spec"]["trainer"]["command"] == ["torchrun"]
    launch = parse_args(JOB["spec"]["trainer"]["args"])
    assert launch.module and launch.training_script == "lth_scale.imp"
    assert (launch.nnodes, launch.nproc_per_node, launch.node_rank, launch.master_addr) == (
        "4",
        "8",
        1,
        "node-0",
    )
    search = parse(launch.training_script_args)
    home = (FILE.parents[2] / "docker/Dockerfile").read_text().split("\nWORKDIR ")[-1].split()[0]
    assert f"{home}/{search.output_dir}".startswith(
        POD["containers"][0]["volumeMounts"][0]["mountPath"] + "/"
    )


def test_a_pod_is_restricted_and_writes_only_to_its_volumes():
    """What the Pod Security Standard `restricted` asks for, and a root that is read-only."""
    pod, container = POD["securityContext"], POD["containers"][0]["securityContext"]
    assert pod["runAsNonRoot"] and pod["runAsUser"] == pod["fsGroup"] == 1000
    assert (
        pod["seccompProfile"] == {"type": "RuntimeDefault"}
        and not POD["automountServiceAccountToken"]
    )
    assert container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {
        mount["mountPath"]
        for mount in POD["containers"][0]["volumeMounts"]
        if not mount.get("readOnly")
    }
    assert mounts == {"/app/runs", "/cache", "/dev/shm", "/tmp"}


def test_a_token_is_a_file_of_an_optional_secret():
    environment = {entry["name"]: entry["value"] for entry in POD["containers"][0]["env"]}
    mount = next(
        mount for mount in POD["containers"][0]["volumeMounts"] if mount["name"] == "token"
    )
    secret = next(volume["secret"] for volume in POD["volumes"] if volume["name"] == "token")
    assert environment["HF_TOKEN_PATH"] == f"{mount['mountPath']}/token" and mount["readOnly"]
    assert secret["optional"] and secret["defaultMode"] == 0o440  # readable by fsGroup
    assert not [name for name in environment if "TOKEN" in name and not name.endswith("_PATH")]
