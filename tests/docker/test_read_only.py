"""The services of docker/compose.yaml on a root that is read-only but for their volumes and tmpfs,
without a container.

`bwrap` gives the commands a file system with this Python, the image's directories and variables, and the image's user.
"""

import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

pytestmark = [
    pytest.mark.machine,
    pytest.mark.skipif(not shutil.which("bwrap"), reason="needs bwrap: apt-get install bubblewrap"),
]

ROOT = Path(__file__).parents[2]
SERVICES = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
VARIABLES = dict(
    re.findall(r"(\w+)=(\S+)", re.search(r"^ENV HOME=(?:.*\\\n)*.*", DOCKERFILE, re.MULTILINE)[0])
)
DIRECTORIES = ["/app/runs", "/cache", "/mlflow", VARIABLES["HOME"]]
SYSTEM = ["/bin", "/etc", "/lib", "/lib64", "/sbin", "/usr", sys.prefix, sys.base_prefix, str(ROOT)]


def start(name: str, command: list[str], volumes: Path, **variables: str) -> subprocess.Popen:
    """A service's process; its volumes are directories below `volumes`."""
    service = SERVICES[name]
    call = [
        "bwrap",
        "--unshare-user",
        "--unshare-pid",
        "--uid",
        "1000",
        "--gid",
        "1000",
        "--die-with-parent",
        "--clearenv",
    ]
    for directory in ["/", *service["tmpfs"]]:
        call += ["--tmpfs", directory]
    for directory in SYSTEM:
        call += ["--ro-bind-try", directory, directory]
    for directory in DIRECTORIES:
        call += ["--dir", directory]
    call += [
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--ro-bind",
        ROOT / "docker/no_token",
        "/run/secrets/hf_token",
    ]
    for volume in service["volumes"]:
        source, target = volume.split(":")
        (volumes / source).mkdir(exist_ok=True)
        call += ["--bind", volumes / source, target]
    path = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    for variable, value in {**VARIABLES, **path, **service["environment"], **variables}.items():
        call += ["--setenv", variable, value]
    call += ["--remount-ro", "/", "--chdir", "/app", "--", *command]
    return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def output(process: subprocess.Popen, code: int = 0) -> str:
    """What it printed until it ended with this exit code."""
    said, _ = process.communicate(timeout=600)
    assert process.returncode == code, said[-3000:]
    return said


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    """The directory of the volumes."""
    return tmp_path_factory.mktemp("volumes")


@pytest.fixture(scope="module")
def server(volumes):
    """The address of the MLflow server, on a free port, once its own health check passes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [part.replace(":5000", f":{port}") for part in SERVICES["mlflow"]["command"]]
    check = [
        part.replace(":5000", f":{port}") for part in SERVICES["mlflow"]["healthcheck"]["test"][1:]
    ]
    process = start("mlflow", [*command, f"--port={port}"], volumes)
    until = time.monotonic() + 300
    while start("mlflow", check, volumes).wait() and time.monotonic() < until:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(1)
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait(timeout=60)


def test_the_root_is_read_only_and_an_empty_token_file_is_ignored(volumes):
    said = output(
        start("trainer", ["touch", "/app/x", "/x", f"{VARIABLES['HOME']}/x", "/tmp/x"], volumes),
        code=1,
    )
    assert said.count("Read-only file system") == 3
    shown = output(
        start(
            "trainer",
            ["python", "-c", "import huggingface_hub as h; print(h.get_token())"],
            volumes,
        )
    )
    assert shown == "None\n"


def test_a_search_and_the_server_write_only_to_their_volumes(volumes, server):
    flags = "--task mlm --preset demo --max_steps 1 --target_sparsity 0.1"
    command = ["sh", str(ROOT / "docker/start.sh"), *shlex.split(flags)]
    said = output(start("trainer", command, volumes, MLFLOW_TRACKING_URI=server))
    assert (volumes / "runs/mlm-demo/ticket.safetensors").is_file()
    assert (volumes / "mlflow/mlflow.db").is_file() and list(
        (volumes / "mlflow/artifacts").iterdir()
    )
    assert (
        "Read-only" not in said and "temporary" not in said
    )  # libraries that found no place for their caches


def test_the_health_check_keeps_its_state_in_the_temporary_directory(volumes):
    said = output(
        start("trainer", ["sh", "-c", f"sh {ROOT}/docker/healthy.sh; cat /tmp/healthy"], volumes)
    )
    assert said.strip().isdigit()
