"""The container files, as far as they can be proven without a container engine.

Compose file: the published schema, and that everything it refers to is there. Dockerfiles: the
linter, and that they copy what exists. Both: that no secret is in them, that nothing runs as root,
and that every variable is one that some service reads.
"""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from importlib import import_module, resources, util
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import msgspec
import pytest
import yaml

from device_agent.config import AgentConfig
from quantize_worker.contract import TAILOR_QUEUES

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
COMPOSE = DOCKER / "compose.yaml"
SERVICE_PACKAGES = ("fleet", "tenancy", "models_registry", "quantize_worker", "blobstore")
# read by the store's library, by PostgreSQL's and RabbitMQ's images, and by compose.yaml itself
FOREIGN = re.compile(r"AWS_[A-Z_]+|POSTGRES_[A-Z_]+|RABBITMQ_[A-Z_]+|POCKETFLEET_LISTEN")
SECRET = re.compile(r"PASSWORD|PASS$|SECRET|ACCESS_KEY|_KEY$")


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return loaded


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, rest) in order, continuation lines joined, comments left out."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def final_stage(dockerfile: Path) -> list[tuple[str, str]]:
    found = instructions(dockerfile)
    last = max(number for number, (word, _) in enumerate(found) if word == "FROM")
    return found[last:]


def schema_errors(document: dict[str, Any]) -> list[str]:
    """What the published Compose Specification schema (as check-jsonschema ships it) says."""
    vendor = resources.files("check_jsonschema.builtin_schemas.vendor")
    schema = json.loads(vendor.joinpath("compose-spec.json").read_text())
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    return [error.message for error in validator(schema).iter_errors(document)]


def hadolint(dockerfile: Path) -> subprocess.CompletedProcess[str]:
    binary = Path(sys.executable).parent / "hadolint"
    return subprocess.run([binary, "--no-color", dockerfile], capture_output=True, text=True)


# the linters themselves


def test_compose_file_fits_the_published_schema() -> None:
    assert schema_errors(compose()) == []


def test_schema_check_finds_a_misspelt_key() -> None:
    broken = compose()
    broken["services"]["nginx"]["helthcheck"] = {}
    assert any("helthcheck" in message for message in schema_errors(broken))


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfile_is_lint_free(dockerfile: Path) -> None:
    done = hadolint(dockerfile)
    assert (done.returncode, done.stdout) == (0, "")


def test_linter_finds_an_unpinned_base(tmp_path: Path) -> None:
    broken = tmp_path / "Dockerfile"
    broken.write_text("FROM python\nRUN cd /tmp\n")
    done = hadolint(broken)
    assert done.returncode == 1
    assert "DL3006" in done.stdout


# Dockerfiles


def test_every_service_has_a_dockerfile() -> None:
    assert [path.name for path in DOCKERFILES] == [
        "control-plane.Dockerfile",
        "device-agent.Dockerfile",
        "quantize-worker.Dockerfile",
    ]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_copied_sources_exist(dockerfile: Path) -> None:
    for word, rest in instructions(dockerfile):
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_image_is_multi_stage_hash_locked_and_not_root(dockerfile: Path) -> None:
    found = instructions(dockerfile)
    bases = [rest.split()[0] for word, rest in found if word == "FROM"]
    assert len(bases) == 2
    assert all(re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base) for base in bases)
    installs = [rest for word, rest in found if word == "RUN" and "pip install" in rest]
    assert installs
    assert all("--require-hashes" in rest or "--no-deps --no-build-isolation ." in rest for rest in installs)
    stage = final_stage(dockerfile)
    assert [rest for word, rest in stage if word == "USER"] == ["10001:10001"]
    assert any(word == "HEALTHCHECK" for word, _ in stage)
    assert any(word == "ENV" and "ORT_DISABLE_TELEMETRY=1" in rest for word, rest in stage)
    assert not any("pip install" in rest for _, rest in stage)


def test_worker_image_has_bubblewrap_and_no_django() -> None:
    found = instructions(DOCKER / "quantize-worker.Dockerfile")
    assert any("bubblewrap" in rest for _, rest in found)
    assert not any(re.search(r"COPY .*(fleet|tenancy|models_registry)", f"{w} {r}") for w, r in found)
    locked = (ROOT / "requirements" / "worker.txt").read_text().lower()
    assert not re.search(r"^django", locked, re.MULTILINE)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_image_copies_every_package_that_its_service_imports(dockerfile: Path) -> None:
    copied = {
        rest.split()[0] for word, rest in instructions(dockerfile) if word == "COPY" and "--from" not in rest
    }
    local = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"benchmarks", "demo", "tests"}
    pattern = re.compile(r"^\s*(?:from|import) (\w+)", re.MULTILINE)
    for package in copied & local:
        for module in (ROOT / package).rglob("*.py"):
            missing = set(pattern.findall(module.read_text())) & local - copied
            assert not missing, f"{module.relative_to(ROOT)} imports {missing}"


# compose.yaml


def test_images_are_pinned_by_tag() -> None:
    for name, service in services().items():
        _, colon, tag = service["image"].rpartition(":")
        assert colon, name
        assert re.match(r"v?\d", tag), name


def test_what_compose_refers_to_exists() -> None:
    document = compose()
    for kind in ("networks", "volumes", "secrets", "configs"):
        used = set()
        for service in document["services"].values():
            for entry in service.get(kind, []):
                name = entry["source"] if isinstance(entry, dict) else entry.split(":")[0]
                used.add(name)
        assert used == set(document[kind]), kind
    for service in document["services"].values():
        if "build" in service:
            assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    for config in document["configs"].values():
        if "file" in config:
            assert (DOCKER / config["file"]).is_file()


def test_every_service_is_watched_and_waited_for() -> None:
    """Long-running services have a health check; one-shot ones are waited for until they succeed."""
    found = services()
    waited = [(n, c["condition"]) for s in found.values() for n, c in s.get("depends_on", {}).items()]
    one_shot = {name for name, condition in waited if condition == "service_completed_successfully"}
    assert one_shot == {"bucket", "setup"}
    for name, condition in waited:
        expected = "service_completed_successfully" if name in one_shot else "service_healthy"
        assert condition == expected, name
    for name, service in found.items():
        if name in one_shot:
            assert service["restart"].startswith("on-failure"), name
        else:
            assert "healthcheck" in service or "build" in service, name
            assert service["restart"] == "unless-stopped", name


def test_own_services_are_hardened() -> None:
    for name, service in services().items():
        if "build" in service or name == "nginx":
            assert service["cap_drop"] == ["ALL"], name
            assert service["read_only"] is True, name
            assert "no-new-privileges:true" in service["security_opt"], name
            assert "privileged" not in service, name


def test_a_quantize_worker_reaches_broker_and_blobs_only() -> None:
    document = compose()
    workers = [row for name, row in document["services"].items() if name.startswith("quantize-worker")]
    assert len(workers) == 2
    assert all(worker["networks"] == ["jobs"] for worker in workers)
    assert document["networks"]["jobs"]["internal"] is True
    members = {name for name, service in document["services"].items() if "jobs" in service["networks"]}
    assert "database" not in members
    assert not any("POCKETFLEET_DATABASE_URL" in worker["environment"] for worker in workers)


def test_every_tailoring_queue_has_a_worker_and_jobs_fit_its_memory() -> None:
    workers = [row for name, row in services().items() if name.startswith("quantize-worker")]
    taken = [queue for worker in workers for queue in _queues(worker)]
    assert sorted(taken) == sorted(TAILOR_QUEUES)
    for worker in workers:
        limit = int(worker["mem_limit"].removesuffix("g")) * 2**30
        assert 0 < int(worker["environment"]["POCKETFLEET_JOB_MEMORY_BYTES"]) < limit


def _queues(worker: dict[str, Any]) -> list[str]:
    command = worker["command"]
    return str(command[command.index("-Q") + 1]).split(",")


def test_no_secret_is_in_the_files() -> None:
    for name, service in services().items():
        for variable, value in service.get("environment", {}).items():
            if SECRET.search(variable):
                assert re.fullmatch(r"\$\{\w+:\?[^}]*\}|/run/secrets/\w+", str(value)), f"{name}: {variable}"
    values = [v for service in services().values() for v in service.get("environment", {}).values()]
    urls = [value for value in map(str, values) if "://" in value and "@" in value]
    assert urls
    assert all(re.search(r"://\w+:\$\{\w+:\?[^}]*\}@", url) for url in urls)
    for line in (DOCKER / "env.example").read_text().splitlines():
        variable, equals, value = line.partition("=")
        if equals and not line.startswith("#") and SECRET.search(variable):
            assert value == "", variable


def test_example_lists_every_variable_that_compose_requires() -> None:
    required = set(re.findall(r"\$\{(\w+):\?", COMPOSE.read_text()))
    lines = (DOCKER / "env.example").read_text().splitlines()
    listed = {line.partition("=")[0] for line in lines if "=" in line and not line.startswith("#")}
    assert required <= listed
    assert listed - required <= {"POCKETFLEET_LISTEN"}


def test_every_variable_is_one_that_a_service_reads() -> None:
    sources = "\n".join(
        module.read_text() for package in SERVICE_PACKAGES for module in (ROOT / package).rglob("*.py")
    )
    agent = {f"POCKETFLEET_AGENT_{field.name.upper()}" for field in msgspec.structs.fields(AgentConfig)}
    agent.add("POCKETFLEET_AGENT_STATE_DIR")
    used = {name for service in services().values() for name in service.get("environment", {})}
    for dockerfile in DOCKERFILES:
        used |= set(re.findall(r"\b(POCKETFLEET_\w+)=", dockerfile.read_text()))
    for line in (DOCKER / "env.example").read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            used.add(line.partition("=")[0])
    for name in used:
        if FOREIGN.fullmatch(name):
            continue
        known = name in agent if name.startswith("POCKETFLEET_AGENT_") else f'"{name}"' in sources
        assert known, f"nothing reads {name}"


def test_commands_name_modules_that_exist() -> None:
    texts = [" ".join(map(str, service.get("command", []))) for service in services().values()]
    texts += [rest for path in DOCKERFILES for word, rest in instructions(path) if word == "CMD"]
    modules = set(re.findall(r"-A\W+([\w.]+)|(fleet\.wsgi):application", "\n".join(texts)))
    names = {name for groups in modules for name in groups if name}
    assert names == {"fleet.celery", "fleet.wsgi", "quantize_worker.app"}
    for name in names:
        assert (ROOT / (name.replace(".", "/") + ".py")).is_file(), name
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["pocketfleet-agent"].partition(":")
    assert callable(getattr(import_module(module), function))


# what the containers run besides the services


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_nginx_accepts_its_configuration(tmp_path: Path) -> None:
    text = (DOCKER / "nginx.conf").read_text()
    config = tmp_path / "nginx.conf"
    config.write_text(text.replace("control-plane:8440", "127.0.0.1:8440").replace("/tmp/", f"{tmp_path}/"))
    done = subprocess.run(["nginx", "-t", "-c", config], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_agent_entrypoint_is_valid_shell() -> None:
    script = DOCKER / "agent-entrypoint.sh"
    assert os.access(script, os.X_OK)
    subprocess.run(["sh", "-n", script], check=True)


def healthcheck(
    *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, DOCKER / "healthcheck.py", *arguments],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
    )


def test_health_over_http() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        assert healthcheck("http", f"{address}/healthz").returncode == 0
        down = healthcheck("http", f"{address}/readyz")
    finally:
        server.shutdown()
        server.server_close()
    assert down.returncode == 1
    assert "503" in down.stderr
    assert healthcheck("http", f"{address}/healthz").returncode == 1


def test_health_by_a_fresh_file(tmp_path: Path) -> None:
    schedule = tmp_path / "beat-schedule"
    assert healthcheck("fresh", str(schedule), "60").returncode == 1
    written = tmp_path / "beat-schedule.db"  # some dbm modules append a suffix
    written.touch()
    assert healthcheck("fresh", str(schedule), "60").returncode == 0
    hour_ago = time.time() - 3600
    os.utime(written, (hour_ago, hour_ago))
    assert healthcheck("fresh", str(schedule), "60").returncode == 1


@pytest.mark.services
@pytest.mark.skipif(
    not os.environ.get("POCKETFLEET_TEST_RABBITMQ"), reason="POCKETFLEET_TEST_RABBITMQ is not set"
)
def test_health_by_a_queue_with_a_consumer() -> None:
    from kombu import Connection, Queue

    broker = {"POCKETFLEET_BROKER_URL": os.environ["POCKETFLEET_TEST_RABBITMQ"]}
    name = f"health-{os.getpid()}"
    assert healthcheck("queue", name, environment=broker).returncode == 1
    with Connection(broker["POCKETFLEET_BROKER_URL"]) as connection:
        channel = connection.channel()
        queue = Queue(name, channel=channel, auto_delete=True, durable=False, exclusive=False)
        queue.declare()
        unattended = healthcheck("queue", name, environment=broker)
        assert (unattended.returncode, "no consumer" in unattended.stderr) == (1, True)
        queue.consume("health", callback=lambda message: None)
        assert healthcheck("queue", name, environment=broker).returncode == 0


def test_health_of_a_queue_needs_a_broker() -> None:
    done = healthcheck("queue", "tailor.small", environment={"POCKETFLEET_BROKER_URL": "filesystem://"})
    assert done.returncode == 1


def load_setup() -> ModuleType:
    spec = util.spec_from_file_location("docker_setup", DOCKER / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_setup_hands_agents_the_key_and_the_root_only(tmp_path: Path) -> None:
    (tmp_path / "root.json").write_text('{"signed": {}}')
    secrets = {"provisioning_key": "pfk_x_y", "root_json_path": str(tmp_path / "root.json"), "password": "no"}
    credentials = tmp_path / "credentials.json"
    credentials.write_text(json.dumps(secrets))
    folder = tmp_path / "agents"
    folder.mkdir()
    setup = load_setup()
    setup.hand_over(credentials, folder)
    setup.hand_over(credentials, folder)  # a second start
    assert {path.name for path in folder.iterdir()} == {"provisioning_key", "root.json"}
    assert (folder / "provisioning_key").read_text() == "pfk_x_y"
    assert (folder / "provisioning_key").stat().st_mode & 0o077 == 0


def test_setup_hands_the_web_process_its_one_key_per_tenant(tmp_path: Path) -> None:
    for tenant in ("acme", "globex"):
        (tmp_path / "keys" / tenant).mkdir(parents=True)
        for name in ("root-1", "targets", "assignment"):
            (tmp_path / "keys" / tenant / f"{name}.pem").write_text(f"{tenant} {name}")
    folder = tmp_path / "web"
    folder.mkdir()
    load_setup().hand_over_assignment_keys(tmp_path / "keys", folder)
    found = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.pem")}
    assert found == {"acme/assignment.pem": "acme assignment", "globex/assignment.pem": "globex assignment"}
    assert (folder / "acme" / "assignment.pem").stat().st_mode & 0o077 == 0


def test_only_setup_and_the_registry_worker_have_the_signing_keys() -> None:
    holders = {
        name
        for name, service in services().items()
        if any(str(volume).startswith("keys:") for volume in service.get("volumes", []))
    }
    assert holders == {"setup", "registry-worker"}
