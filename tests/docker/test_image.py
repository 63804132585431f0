"""docker/Dockerfile is built without a daemon on a base made by debootstrap, and does in the image
what it promises.

The base stays in buildah's store as `lth_scale-test-base`, the image as `lth_scale-test` with its
layers; `buildah rmi` takes them away.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

pytestmark = pytest.mark.machine

ROOT = Path(__file__).parents[2]
BASE, IMAGE = "localhost/lth_scale-test-base", "localhost/lth_scale-test"
SERVICES = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]
SMALL = "--task mlm --preset demo --max_steps 12 --save_steps 2 --target_sparsity 0.2 --output_dir runs/small"

COUNT = """
from mlflow import MlflowClient
client = MlflowClient()
runs = client.search_runs([client.get_experiment_by_name("lth_scale").experiment_id])
parent = next(run.info.run_id for run in runs if "mlflow.parentRunId" not in run.data.tags)
print(len(runs), {run.info.status for run in runs}, [file.path for file in client.list_artifacts(parent, "figures")])
"""


def buildah(*arguments: object) -> str:
    """What a buildah command prints."""
    done = subprocess.run(["buildah", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, (
        f"buildah {arguments[0]}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    )
    return done.stdout.strip()


def known(image: str) -> bool:
    """Whether the store has an image."""
    return (
        subprocess.run(
            ["buildah", "inspect", "--type", "image", image], capture_output=True
        ).returncode
        == 0
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """Debian 12 without Python, as an image."""
    missing = [tool for tool in ("buildah", "debootstrap", "unshare") if not shutil.which(tool)]
    if missing or os.geteuid() != 0:
        pytest.skip(
            f"needs root and {', '.join(missing) or 'nothing else'}: apt-get install buildah debootstrap"
        )
    if not known(BASE):
        root = tmp_path_factory.mktemp("debian")
        subprocess.run(
            ["debootstrap", "--variant=minbase", "bookworm", root],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        container = buildah("from", "scratch")
        buildah("copy", "-q", container, root, "/")
        buildah("commit", "-q", "--rm", container, BASE)
    return BASE


def pip_of_the_host(folder: Path) -> list[str]:
    """Volumes that let pip in the build find what pip finds here: its settings, certificates and
    local indexes.
    """
    lines = subprocess.run(["pip", "config", "list"], capture_output=True, text=True).stdout
    settings = dict(re.findall(r"^\S*?\.([\w-]+)='(.*)'$", lines, re.MULTILINE))
    certificates = settings.pop("cert", "")
    if certificates:
        shutil.copy(certificates, folder / "certificates.pem")
        settings["cert"] = "/host/certificates.pem"
    text = "".join(f"{name} = {value}\n" for name, value in settings.items())
    (folder / "pip.conf").write_text(f"[global]\n{text}")
    local = {
        path
        for path in re.findall(r"(?:file://|(?<=[\s=]))(/[\w./-]+)", text)
        if not path.startswith("/host")
    }
    mounts = [f"{folder}:/host:ro", f"{folder}/pip.conf:/etc/pip.conf:ro"]
    local = {
        str(Path(path).parent) if path.endswith("/simple") else path for path in local
    }  # its files lie beside it
    mounts += [f"{path}:{path}:ro" for path in sorted(local) if os.path.isdir(path)]
    return [f"--volume={mount}" for mount in mounts]


@pytest.fixture(scope="module")
def image(base, tmp_path_factory) -> str:
    """The image of docker/Dockerfile; minutes the first time, seconds from the layers in the store."""
    flags = [
        "--format=docker",
        "--isolation=chroot",
        "--network=host",
        "--layers",
        f"--build-arg=BASE={base}",
    ]
    labels = ["--build-arg=VERSION=1.2.3", "--build-arg=REVISION=abc"]
    host = pip_of_the_host(tmp_path_factory.mktemp("host"))
    buildah("bud", *flags, *labels, *host, "-f", ROOT / "docker/Dockerfile", "-t", IMAGE, ROOT)
    return IMAGE


@pytest.fixture(scope="module")
def config(image) -> dict:
    """What the image says of itself."""
    return json.loads(buildah("inspect", "--type", "image", image))["Docker"]["config"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A volume for /app/runs that the image's user may write."""
    folder = tmp_path_factory.mktemp("runs")
    for path in (folder, *list(folder.parents)[:2]):
        path.chmod(0o755)
    os.chown(folder, 1000, 1000)
    return folder


Start = Callable[..., psutil.Popen]


@pytest.fixture(scope="module")
def start(config, image, runs, tmp_path_factory) -> Iterator[Start]:
    """Start a container with the image's entry point and user, in a process space of its own."""
    containers, processes, logs = [], [], tmp_path_factory.mktemp("logs")

    def go(*command: str, environment: dict | None = None) -> psutil.Popen:
        containers.append(buildah("from", "--add-host=mlflow:127.0.0.1", image))
        flags = [f"--env={name}={value}" for name, value in (environment or {}).items()]
        flags += ["--isolation=chroot", f"--volume={runs}:/app/runs"]
        space = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
        call = [
            *space,
            "buildah",
            "run",
            *flags,
            containers[-1],
            "--",
            *config["Entrypoint"],
            *command,
        ]
        with (logs / str(len(processes))).open("w") as log:
            processes.append(psutil.Popen(call, stdout=log, stderr=subprocess.STDOUT))
        processes[-1].log = Path(log.name)
        return processes[-1]

    yield go
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()
    for container in containers:
        buildah("rm", container)


def output(process: psutil.Popen, code: int = 0, seconds: float = 600) -> str:
    """What a container printed until it ended with this exit code."""
    ended = process.wait(timeout=seconds)
    said = process.log.read_text()
    assert ended == code, said[-4000:]
    return said


@pytest.fixture(scope="module")
def server(start) -> str:
    """The address of the MLflow server of compose.yaml, on a free port, once its own health check
    passes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [part.replace(":5000", f":{port}") for part in SERVICES["mlflow"]["command"]]
    check = [
        part.replace(":5000", f":{port}") for part in SERVICES["mlflow"]["healthcheck"]["test"][1:]
    ]
    start(*command, f"--port={port}", environment=SERVICES["mlflow"]["environment"])
    output(start("sh", "-c", f"until {shlex.join(check)}; do sleep 2; done 2>/dev/null"))
    return f"http://mlflow:{port}"


def test_the_image_declares_its_user_labels_and_health_check(config):
    assert config["User"] == "1000:1000"
    assert config["Entrypoint"] == ["sh", "/opt/lth_scale/start.sh"]
    assert config["Healthcheck"]["Test"] == ["CMD", "sh", "/opt/lth_scale/healthy.sh"]
    labels = {
        name.removeprefix("org.opencontainers.image."): text
        for name, text in config["Labels"].items()
    }
    assert (labels["title"], labels["version"], labels["revision"]) == ("lth_scale", "1.2.3", "abc")
    assert labels["licenses"] == "Apache-2.0"
    assert not [
        line for line in config["Env"] if re.match(r"[A-Z_]*(TOKEN|SECRET|PASSWORD|PIP_)", line)
    ]


def test_the_user_is_not_root_and_can_write_to_the_volumes(start):
    script = "id -u; touch /app/runs/a /cache/a /mlflow/a ~/a && ! touch /opt/venv/a 2>&1 && ls -A /app /src"
    said = output(start("sh", "-c", script), code=2)
    assert said.split()[0] == "1000" and "Permission denied" in said
    assert "ls: cannot access '/src'" in said  # the sources of the build are not in the image


def test_a_stopped_search_resumes_from_its_checkpoint_and_is_in_mlflow(start, server, runs):
    """As compose runs it: the trainer logs over HTTP to the server by its name; SIGTERM goes to its
    first process.
    """
    trainer = start(*SMALL.split(), environment={"MLFLOW_TRACKING_URI": server})
    rounds = runs / "small/rounds"
    until = time.monotonic() + 300
    while not list(rounds.glob("00/checkpoint-*/complete")):
        assert trainer.poll() is None, trainer.log.read_text()
        assert time.monotonic() < until
        time.sleep(0.1)
    first = next(
        child
        for child in trainer.children(recursive=True)
        if child.cmdline()[1:2] == ["/opt/lth_scale/start.sh"]
    )
    first.send_signal(signal.SIGTERM)
    said = output(trainer, code=128 + signal.SIGTERM)
    saved = re.search(r"was asked to stop: .*/checkpoint-(\d+) is written", said)
    assert saved and (runs / f"small/rounds/00/checkpoint-{saved[1]}/complete").is_file(), said
    again = output(start(*SMALL.split(), environment={"MLFLOW_TRACKING_URI": server}))
    assert f"round 00: goes on from step {saved[1]} of 12" in again
    counted = output(start("python", "-c", COUNT, environment={"MLFLOW_TRACKING_URI": server}))
    assert "6 {'FINISHED'} ['figures/" in counted  # the search, three rounds, two controls


def test_the_sparse_kernels_are_compiled_in_the_image(start, server, runs):
    """`--format native` needs the compiler that the image brings, at run time, as its user."""
    said = output(
        start("lth", "export", "runs/small", "--format", "native", "--output_dir", "runs/native")
    )
    assert list((runs / "native").rglob("*.safetensors")), said


def test_deepspeed_runs_two_ranks_in_the_image(start, runs):
    """Its operator for ranks on one CPU machine is compiled at first use too."""
    flags = "--task mlm --preset demo --max_steps 2 --target_sparsity 0.1 --report_to none --output_dir runs/zero3"
    launch = [
        "accelerate",
        "launch",
        "--config_file",
        "accelerate_configs/zero3.yaml",
        "-m",
        "lth_scale.imp",
    ]
    output(start(*launch, *flags.split()))
    assert (runs / "zero3/ticket.safetensors").is_file()


@pytest.mark.parametrize(
    ("work", "healthy"), [("while :; do :; done", True), ("sleep 1000", False)]
)
def test_the_health_check_requires_progress(start, work, healthy):
    """The image's health check, twice, 20 seconds apart, beside a busy and beside an idle process."""
    script = f"({work}) & sh /opt/lth_scale/healthy.sh; sleep 20; sh /opt/lth_scale/healthy.sh; echo code $?; kill $!"
    assert f"code {0 if healthy else 1}" in output(start("sh", "-c", script))
