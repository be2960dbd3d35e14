"""The management API over HTTP: resources, scopes, tenants, idempotency, strictness, pages."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from django.db import connections
from django.test import Client

from fleet.devices.models import Device
from fleet.devices.services import store_capabilities
from fleet.telemetry.models import InferenceRow
from models_registry.models import (
    Build,
    Model,
    ModelVersion,
    Release,
    Tailoring,
    UploadPart,
    VersionFile,
)
from models_registry.services.builds import apply_build_result
from models_registry.services.fronts import draw_fronts
from models_registry.services.leases import apply_progress
from models_registry.services.releases import publish_release
from models_registry.services.signing import initialise_repository
from models_registry.services.sweeper import ANSWERS_KEPT, sweep
from models_registry.services.versions import apply_inspect_result
from quantize_worker.contract import InspectResult, Progress
from tenancy.models import ApiToken, App, AuditEntry, IdempotencyRecord, Tenant
from tenancy.scopes import SCOPES
from tenancy.services import create_api_token, create_user
from tests.factories import ACTOR, capability_report, make_class, make_devices, make_release
from tests.integration.test_builds import FACTS, built, failed

pytestmark = pytest.mark.django_db(databases="__all__")

MODEL_BYTES = b"not checked here: workers do that" * 100
CLASS = {
    "filter": "ram_mb >= 6000",
    "accelerator": "cpu",
    "execution_provider": "CPUExecutionProvider",
    "precisions": ["int8-dynamic", "fp32"],
    "memory_bytes": 4_000_000_000,
    "storage_bytes": 1_000_000_000,
    "quality_floor": 0.9,
}


class Api:
    """Calls the API as an app team would; ``problem`` asserts on the error's form."""

    def __init__(self, token: str) -> None:
        self._client = Client(headers={"Authorization": f"Bearer {token}"})

    def send(
        self, method: str, path: str, body: Any = None, *, raw: bytes | None = None, **headers: str
    ) -> Any:
        data = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        kind = "application/octet-stream" if raw is not None else "application/json"
        if headers.pop("as_json", None):
            kind = "application/json"
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._client.generic(method, f"/api/v1/{path}", data, content_type=kind, headers=names)

    def ok(self, method: str, path: str, body: Any = None, status: int = 200, **more: Any) -> Any:
        response = self.send(method, path, body, **more)
        assert response.status_code == status, response.content
        return json.loads(response.content) if response.content else None

    def problem(self, method: str, path: str, body: Any = None, **more: Any) -> dict[str, Any]:
        response = self.send(method, path, body, **more)
        assert response.status_code >= 400, response.content
        assert response["Content-Type"] == "application/problem+json"
        problem: dict[str, Any] = json.loads(response.content)
        assert {"type", "title", "status", "code", "detail"} <= set(problem)
        assert problem["status"] == response.status_code
        return problem


def api_for(app: App, *scopes: str) -> Api:
    _, plaintext = create_api_token(app=app, name="test", scopes=scopes or SCOPES, actor=ACTOR)
    return Api(plaintext)


@pytest.fixture
def api(app: App) -> Api:
    return api_for(app)


@pytest.fixture
def rival(other_app: App) -> Api:
    return api_for(other_app)


def file_spec(data: bytes = MODEL_BYTES, path: str = "model.onnx", role: str = "model") -> dict[str, Any]:
    return {"role": role, "path": path, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def announced(api: Api, *specs: dict[str, Any]) -> dict[str, Any]:
    api.send("POST", "models", {"name": "minilm"})
    version: dict[str, Any] = api.ok(
        "POST", "models/minilm/versions", {"files": list(specs) or [file_spec()]}, 201
    )
    return version


def checking_version(api: Api) -> dict[str, Any]:
    """A version that waits for a worker."""
    version = announced(api)
    api.ok("PUT", f"versions/{version['id']}/files/model.onnx", raw=MODEL_BYTES)
    completed: dict[str, Any] = api.ok("POST", f"versions/{version['id']}/complete", status=202)
    return completed


def ready_version(api: Api) -> dict[str, Any]:
    """A version that a worker found fine."""
    version = checking_version(api)
    result = InspectResult(version=version["id"], attempt=1, status="ready", facts=FACTS)
    assert apply_inspect_result(result=result)
    checked: dict[str, Any] = api.ok("GET", f"versions/{version['id']}")
    return checked


def tailored_version(api: Api) -> dict[str, Any]:
    """A version whose one build is ready."""
    version = ready_version(api)
    api.ok("POST", "device-classes", {"name": "mid", **CLASS}, 201)
    api.ok("POST", f"versions/{version['id']}/builds", {}, 202)
    assert apply_build_result(result=built(Build.objects.get()))
    return version


class TestAccess:
    def test_me_names_the_caller(self, app: App) -> None:
        me = api_for(app, "models:read").ok("GET", "me")
        assert me["tenant"] == "acme"
        assert me["app"] == "search"
        assert me["scopes"] == ["models:read"]

    @pytest.mark.parametrize("header", ["", "Bearer ", "Bearer pf_00000000_nothing", "Basic cGY6eA=="])
    def test_without_a_valid_token_the_answer_is_401(self, db: None, header: str) -> None:
        response = Client(headers={"Authorization": header} if header else None).get("/api/v1/me")
        assert response.status_code == 401
        assert response["WWW-Authenticate"] == "Bearer"
        assert response.json()["code"] in ("invalid_token", "unauthenticated")

    def test_a_revoked_token_is_refused(self, api: Api, app: App) -> None:
        created = api.ok("POST", "tokens", {"name": "ci", "scopes": ["models:read"]}, 201)
        assert Api(created["token"]).ok("GET", "models")["results"] == []
        api.ok("DELETE", f"tokens/{created['id']}", status=204)
        assert Api(created["token"]).problem("GET", "models")["code"] == "invalid_token"

    def test_a_token_cannot_grant_what_it_lacks(self, app: App) -> None:
        narrow = api_for(app, "tokens:write", "models:read")
        problem = narrow.problem("POST", "tokens", {"name": "wider", "scopes": ["models:write"]})
        assert problem["code"] == "scope_missing"
        assert ApiToken.objects.count() == 1

    @pytest.mark.parametrize(
        ("method", "path", "scope"),
        [
            ("GET", "models", "models:read"),
            ("POST", "models", "models:write"),
            ("GET", "builds", "builds:read"),
            ("GET", "releases", "builds:read"),
            ("GET", "devices", "devices:read"),
            ("POST", "device-classes", "devices:write"),
            ("POST", "provisioning-keys", "devices:write"),
            ("GET", "rollouts", "rollouts:read"),
            ("POST", "rollouts", "rollouts:write"),
            ("GET", "tokens", "tokens:write"),
            ("POST", "apps", "tokens:write"),
        ],
    )
    def test_each_call_needs_its_scope(self, app: App, method: str, path: str, scope: str) -> None:
        others = [each for each in SCOPES if each != scope]
        problem = api_for(app, *others).problem(method, path, {})
        assert (problem["status"], problem["code"]) == (403, "scope_missing")
        assert problem["scopes"] == [scope]

    def test_the_audit_log_needs_every_read_scope(self, api: Api, app: App) -> None:
        assert api.ok("GET", "audit?action=app.create")["results"][0]["subject"] == str(app.pk)
        assert api_for(app, "models:read").problem("GET", "audit")["code"] == "scope_missing"

    def test_a_session_reads_without_and_writes_with_csrf(self, tenant: Tenant, app: App) -> None:
        create_user(tenant=tenant, username="ada", password="correct horse battery", role="admin")
        client = Client(enforce_csrf_checks=True)
        assert client.login(username="ada", password="correct horse battery")
        assert client.get("/api/v1/me").json()["actor"] == "ada"
        body: dict[str, Any] = {"data": {"name": "minilm"}, "content_type": "application/json"}
        refused = client.post("/api/v1/models", **body)
        assert (refused.status_code, refused.json()["code"]) == (403, "csrf_failed")
        client.get("/models")  # sets the cookie
        token = client.cookies["csrftoken"].value
        assert client.post("/api/v1/models", headers={"X-CSRFToken": token}, **body).status_code == 201

    def test_a_viewers_session_cannot_write(self, tenant: Tenant, app: App) -> None:
        create_user(tenant=tenant, username="vic", password="correct horse battery", role="viewer")
        client = Client()
        client.login(username="vic", password="correct horse battery")
        response = client.post("/api/v1/models", {"name": "minilm"}, content_type="application/json")
        assert response.json()["code"] == "scope_missing"

    def test_use_is_noted(self, api: Api) -> None:
        api.ok("GET", "me")
        assert ApiToken.objects.get().last_used_at

    def test_unknown_addresses_and_methods(self, api: Api) -> None:
        assert api.problem("GET", "nothing/here")["code"] == "not_found"
        assert api.problem("POST", "nothing/here")["code"] == "not_found"
        assert api.problem("PATCH", "models")["code"] == "method_not_allowed"
        assert api.problem("GET", f"builds/{uuid.uuid4()}")["code"] == "build_not_found"
        assert api.problem("GET", f"devices/{uuid.uuid4()}")["code"] == "device_not_found"


class TestModels:
    def test_create_list_and_read(self, api: Api) -> None:
        created = api.ok("POST", "models", {"name": "minilm", "description": "embeddings"}, 201)
        assert created["app"] == "search"
        assert api.ok("GET", "models")["results"] == [created]
        assert api.ok("GET", "models/minilm") == created

    def test_a_name_is_taken_once(self, api: Api) -> None:
        api.ok("POST", "models", {"name": "minilm"}, 201)
        problem = api.problem("POST", "models", {"name": "minilm"})
        assert (problem["status"], problem["code"]) == (409, "model_exists")

    def test_invalid_fields_are_named(self, api: Api) -> None:
        problem = api.problem("POST", "models", {"description": 3 * ["x"]})
        assert problem["code"] == "validation_failed"
        assert set(problem["errors"]) == {"name", "description"}

    def test_nested_fields_are_named_by_their_place(self, api: Api) -> None:
        api.ok("POST", "models", {"name": "minilm"}, 201)
        files = [file_spec(), {**file_spec(path="b.bin"), "sha256": "short"}]
        problem = api.problem("POST", "models/minilm/versions", {"files": files})
        assert list(problem["errors"]) == ["files.1.sha256"]
        assert "64 lower-case hexadecimal digits" in problem["errors"]["files.1.sha256"][0]

    def test_unknown_fields_are_refused_by_name(self, api: Api) -> None:
        problem = api.problem("POST", "models", {"name": "minilm", "descripton": "x"})
        assert (problem["status"], problem["code"]) == (400, "validation_failed")
        assert problem["errors"] == {
            "descripton": ["There is no such field. Known are: name, app, description."]
        }
        assert "descripton" in problem["detail"]
        assert api.ok("GET", "models")["results"] == []
        api.ok("POST", "models", {"name": "minilm"}, 201)
        body = {"files": [{**file_spec(), "size": 1}]}
        assert list(api.problem("POST", "models/minilm/versions", body)["errors"]) == ["files.0.size"]
        app = {"slug": "other", "name": "Other", "id": "1"}
        assert list(api.problem("POST", "apps", app)["errors"]) == ["id"]

    def test_refusals_name_choices_and_formats(self, api: Api) -> None:
        api.ok("POST", "models", {"name": "minilm"}, 201)
        body = {"files": [{**file_spec(), "role": "weights"}]}
        (role,) = api.problem("POST", "models/minilm/versions", body)["errors"].values()
        assert role == ['"weights" is not one of model, evaluation, calibration.']
        (name,) = api.problem("POST", "models", {"name": "a b"})["errors"].values()
        assert "lower-case letters, digits" in name[0]

    def test_aliases_move(self, api: Api) -> None:
        version = ready_version(api)
        alias = api.ok("PUT", "models/minilm/aliases/champion", {"version": 1})
        assert (alias["name"], alias["version"]) == ("champion", 1)
        assert api.ok("GET", "models/minilm")["aliases"] == [alias]
        assert api.ok("GET", f"versions/{version['id']}")["aliases"] == ["champion"]
        api.ok("DELETE", "models/minilm/aliases/champion", status=204)
        assert api.ok("GET", "models/minilm/aliases")["results"] == []
        assert api.problem("PUT", "models/minilm/aliases/champion", {"version": 9})["code"] == "not_found"


class TestUploads:
    def test_parts_resume_where_they_stopped(self, api: Api) -> None:
        version = announced(api)
        path = f"versions/{version['id']}/files/model.onnx"
        api.ok("PUT", f"{path}?offset=0", raw=MODEL_BYTES[:1000])
        problem = api.problem("PUT", f"{path}?offset=500", raw=MODEL_BYTES[500:])
        assert (problem["status"], problem["code"]) == (409, "offset_mismatch")
        assert problem["expected_offset"] == 1000
        assert api.ok("GET", f"versions/{version['id']}")["files"][0]["received_bytes"] == 1000
        file = api.ok("PUT", f"{path}?offset=1000", raw=MODEL_BYTES[1000:])
        assert file["complete"] is True
        completed = api.ok("POST", f"versions/{version['id']}/complete", status=202)
        assert completed["state"] == "checking"

    def test_an_incomplete_upload_cannot_be_completed_and_is_not_listed(self, api: Api) -> None:
        version = announced(api)
        problem = api.problem("POST", f"versions/{version['id']}/complete")
        assert (problem["code"], problem["missing"]) == ("upload_incomplete", ["model.onnx"])
        assert api.ok("GET", "versions")["results"] == []
        assert len(api.ok("GET", "versions?state=uploading")["results"]) == 1

    def test_discard_leaves_nothing(self, api: Api) -> None:
        version = announced(api)
        api.ok("DELETE", f"versions/{version['id']}", status=204)
        assert api.problem("GET", f"versions/{version['id']}")["code"] == "version_not_found"

    def test_a_small_model_goes_up_in_one_call(self, api: Api) -> None:
        api.ok("POST", "models", {"name": "minilm"}, 201)
        sha256 = hashlib.sha256(MODEL_BYTES).hexdigest()
        version = api.ok("PUT", f"models/minilm/upload?sha256={sha256}", raw=MODEL_BYTES, status=202)
        assert version["state"] == "checking"
        assert version["files"][0]["sha256"] == sha256

    def test_a_wrong_digest_leaves_nothing(self, api: Api) -> None:
        api.ok("POST", "models", {"name": "minilm"}, 201)
        problem = api.problem("PUT", f"models/minilm/upload?sha256={'0' * 64}", raw=MODEL_BYTES)
        assert (problem["status"], problem["code"]) == (422, "digest_mismatch")
        assert not ModelVersion.objects.exists()

    def test_parameters_are_checked(self, api: Api) -> None:
        version = announced(api)
        path = f"versions/{version['id']}/files/model.onnx"
        assert api.problem("PUT", f"{path}?offset=-1", raw=b"x")["code"] == "invalid_parameter"
        assert api.problem("PUT", f"{path}x?offset=0", raw=b"x")["code"] == "file_not_announced"
        assert api.problem("PUT", "models/minilm/upload?sha256=zz", raw=b"x")["code"] == "invalid_parameter"


class TestBuilds:
    def test_from_request_to_release(self, api: Api) -> None:
        initialise_repository(tenant=Tenant.objects.get(slug="acme"))
        version = ready_version(api)
        assert version["facts"]["opset"] == 17
        assert api.problem("POST", f"versions/{version['id']}/builds", {})["code"] == "no_classes"
        api.ok("POST", "device-classes", {"name": "mid", **CLASS}, 201)
        tailorings = api.ok("POST", f"versions/{version['id']}/builds", {"classes": ["mid"]}, 202)[
            "tailorings"
        ]
        assert [(each["class_name"], each["state"]) for each in tailorings] == [("mid", "building")]
        assert tailorings[0]["candidates"][0] == "int8-dynamic"
        assert api.problem("POST", f"versions/{version['id']}/releases")["code"] == "builds_unsettled"
        assert apply_build_result(result=built(Build.objects.get()))
        build = api.ok("GET", "builds?state=ready&class=mid&model=minilm")["results"][0]
        assert (build["precision"], build["classes"]) == ("int8-dynamic", ["mid"])
        assert build["quality"]["value"] == pytest.approx(0.99)
        assert api.ok("GET", f"builds/{build['id']}") == build
        assert api.ok("GET", f"builds/{build['id']}/manifest")["build"] == build["id"]
        release = api.ok("POST", f"versions/{version['id']}/releases", status=202)
        assert release["state"] == "signing"
        publish_release(release_id=release["id"])
        release = api.ok("GET", f"releases/{release['id']}")
        assert release["state"] == "published"
        assert [(entry["class_name"], entry["precision"]) for entry in release["entries"]] == [
            ("mid", "int8-dynamic")
        ]
        assert api.ok("GET", f"versions/{version['id']}/releases")["results"] == [release]
        assert api.ok("GET", "trust-root")["signed"]["_type"] == "root"

    def test_unknown_classes_are_named(self, api: Api) -> None:
        version = ready_version(api)
        api.ok("POST", "device-classes", {"name": "mid", **CLASS}, 201)
        problem = api.problem("POST", f"versions/{version['id']}/builds", {"classes": ["mid", "gone"]})
        assert problem["code"] == "unknown_class"
        assert "gone" in problem["detail"]

    def test_cancel_and_retry(self, api: Api) -> None:
        version = ready_version(api)
        api.ok("POST", "device-classes", {"name": "mid", **CLASS}, 201)
        api.ok("POST", f"versions/{version['id']}/builds", {}, 202)
        build = api.ok("GET", f"versions/{version['id']}/builds")["results"][0]
        assert api.ok("POST", f"builds/{build['id']}/cancel")["state"] == "cancelled"
        assert api.problem("POST", f"builds/{build['id']}/cancel")["code"] == "wrong_state"
        again = api.ok("POST", f"builds/{build['id']}/retry")
        assert (again["state"], again["attempt"]) == ("building", 2)

    def test_failures_carry_code_fault_and_history(self, api: Api) -> None:
        version = ready_version(api)
        api.ok("POST", "device-classes", {"name": "mid", **CLASS}, 201)
        api.ok("POST", f"versions/{version['id']}/builds", {}, 202)
        assert apply_build_result(result=failed(Build.objects.get()))
        build = api.ok("GET", "builds?state=failed")["results"][0]
        assert (build["error_code"], build["fault"]) == ("unsupported_operator", "model")
        tailoring = api.ok("GET", f"versions/{version['id']}/tailorings")["results"][0]
        assert [entry["outcome"] for entry in tailoring["history"] if entry["build"]] == ["failed"]


class TestPlans:
    def test_a_tailoring_explains_itself(self, api: Api) -> None:
        version = tailored_version(api)
        draw_fronts()
        listed = api.ok("GET", f"versions/{version['id']}/tailorings")["results"][0]
        assert listed["predicted"]["size_bytes"] > listed["build"]["size_bytes"] > 0
        assert listed["build"]["description"] == "int8-dynamic"
        assert (listed["replans"], listed["nearest"]) == (0, None)
        assert listed["planned_ms"] > 0
        row = api.ok("GET", f"tailorings/{listed['id']}")
        assert len(row["plan"]["layers"]) == len(FACTS.layers)
        layer = row["plan"]["layers"][0]
        assert (layer["layer"], layer["format"]) == (FACTS.layers[0].name, "int8-dynamic")
        assert layer["reason"].startswith("int8-dynamic: saves")
        assert row["plan"]["reasons"]
        assert {"size_bytes", "quality", "formats"} <= set(row["front"][0])
        assert api.ok("GET", f"builds/{row['build']['id']}/layers")["layers"] == row["plan"]["layers"]
        assert api.problem("GET", f"tailorings/{uuid.uuid4()}")["code"] == "tailoring_not_found"

    def test_nothing_that_fits_comes_with_what_would(self, api: Api) -> None:
        version = ready_version(api)
        api.ok("POST", "device-classes", {"name": "tiny", **CLASS, "memory_bytes": 1_000_000}, 201)
        api.ok("POST", f"versions/{version['id']}/builds", {}, 202)
        row = api.ok("GET", f"versions/{version['id']}/tailorings")["results"][0]
        assert (row["state"], row["nearest"]["budget"]) == ("impossible", "memory")
        assert row["nearest"]["needed"] > row["nearest"]["allowed"] == 1_000_000

    def test_a_preview_builds_nothing(self, api: Api) -> None:
        version = ready_version(api)
        path = f"versions/{version['id']}/preview"
        assert api.problem("POST", path, {})["code"] == "no_classes"
        api.ok("POST", "device-classes", {"name": "mid", **CLASS}, 201)
        (plan,) = api.ok("POST", path, {})["plans"]
        assert (plan["class_name"], plan["impossible"], plan["front"]) == ("mid", "", None)
        first = plan["candidates"][0]
        assert (first["precision"], first["description"]) == ("int8-dynamic", "int8-dynamic")
        assert first["predicted"]["quality"] > CLASS["quality_floor"]
        assert [each["precision"] for each in plan["left_out"]] == ["fp32"]
        assert api.ok("POST", path, {"classes": ["mid"], "front": True})["plans"][0]["front"]
        assert api.problem("POST", path, {"classes": ["gone"]})["code"] == "unknown_class"
        assert not Build.objects.exists()

    def test_a_class_that_does_not_exist_yet_is_previewed(self, api: Api) -> None:
        version = ready_version(api)
        path = f"versions/{version['id']}/preview"
        body = {name: value for name, value in CLASS.items() if name != "filter"}
        wanted = {**body, "precisions": ["int4", "int8"], "quality_floor": 0.98, "objective": "quality"}
        (plan,) = api.ok("POST", path, {"target": wanted})["plans"]
        assert (plan["class_name"], plan["candidates"][0]["precision"]) == ("preview", "int8")
        (tiny,) = api.ok("POST", path, {"target": {**wanted, "storage_bytes": 9}})["plans"]
        assert (tiny["candidates"], tiny["nearest"]["budget"]) == ([], "storage")
        problem = api.problem("POST", path, {"target": {**wanted, "precisions": ["int3"]}})
        assert problem["code"] == "validation_failed"
        problem = api.problem("POST", path, {"target": {**wanted, "latency_ms": 0}})
        assert (problem["code"], problem["field"]) == ("invalid_device_class", "latency_ms")

    def test_previews_need_a_version_that_is_ready(self, api: Api) -> None:
        version = announced(api)
        api.ok("POST", "device-classes", {"name": "mid", **CLASS}, 201)
        assert api.problem("POST", f"versions/{version['id']}/preview", {})["code"] == "wrong_state"

    def test_planning_anew_is_asked_for(self, api: Api) -> None:
        version = tailored_version(api)
        first = api.ok("GET", f"versions/{version['id']}/tailorings")["results"][0]
        path = f"versions/{version['id']}/builds"
        (same,) = api.ok("POST", path, {}, 202)["tailorings"]
        assert same["planned_at"] == first["planned_at"]
        (anew,) = api.ok("POST", path, {"replan": True}, 202)["tailorings"]
        assert anew["planned_at"] != first["planned_at"]
        assert anew["state"] in ("ready", "building")


class TestChecks:
    def test_progress_per_step_and_batch_is_visible(self, api: Api) -> None:
        version = checking_version(api)
        path = f"versions/{version['id']}"
        assert (version["queue"], version["since"], version["worker"]) == ("tailor.small", None, "")
        subject = Progress(
            subject=version["id"], subject_kind="version", attempt=1, step="calibrate", share=0.4, worker="w1"
        )
        assert apply_progress(progress=subject)
        row = api.ok("GET", path)
        assert (row["step"], row["share"], row["worker"]) == ("calibrate", 0.4, "w1")
        assert row["since"]
        names = [layer.name for layer in FACTS.layers]
        result = InspectResult(
            version=version["id"], attempt=1, status="ready", facts=FACTS, batches=[names[:5], names[5:]]
        )
        assert apply_inspect_result(result=result)
        batches = api.ok("GET", path)["batches"]
        assert [(each["number"], each["layers"], each["state"]) for each in batches] == [
            (1, 5, "building"),
            (2, 15, "building"),
        ]

    def test_a_check_is_cancelled_and_goes_on(self, api: Api) -> None:
        version = checking_version(api)
        path = f"versions/{version['id']}"
        row = api.ok("POST", f"{path}/cancel")
        assert (row["state"], row["refusal_code"]) == ("refused", "cancelled")
        assert api.problem("POST", f"{path}/cancel")["code"] == "wrong_state"
        assert api.ok("POST", f"{path}/recheck", status=202)["state"] == "checking"

    def test_lists_leave_out_what_is_long(self, api: Api) -> None:
        version = ready_version(api)
        assert len(version["facts"]["layers"]) == len(FACTS.layers)
        (listed,) = api.ok("GET", "versions")["results"]
        assert "layers" not in listed["facts"]
        assert listed["facts"]["parameters"] == version["facts"]["parameters"]

    @pytest.mark.parametrize(
        ("paths", "taken"),
        [
            (["bert/config.json", "bert/model.safetensors", "bert/tokenizer.json"], True),
            (["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"], True),
            (["model.onnx", "config.json"], True),
            (["model.safetensors"], False),
            (["config.json", "weights/model.safetensors"], False),
            (["config.json"], False),
        ],
    )
    def test_a_model_is_a_graph_or_weights_with_their_configuration(
        self, api: Api, paths: list[str], taken: bool
    ) -> None:
        api.ok("POST", "models", {"name": "minilm"}, 201)
        body = {"files": [file_spec(path=path) for path in paths]}
        if taken:
            assert api.ok("POST", "models/minilm/versions", body, 201)["state"] == "uploading"
        else:
            problem = api.problem("POST", "models/minilm/versions", body)
            assert problem["code"] == "missing_model_file"
            assert "safetensors" in problem["detail"]


class TestDevices:
    def test_list_filters_by_language_state_and_class(self, api: Api, tenant: Tenant) -> None:
        make_devices(tenant, 2, class_name="entry", ram_mb=3000)
        make_devices(tenant, 1, class_name="mid", ram_mb=8000, accelerators=["cpu", "npu"])
        assert len(api.ok("GET", "devices")["results"]) == 3
        npu = api.ok("GET", "devices?filter=" + 'accelerator == "npu"'.replace(" ", "%20"))["results"]
        assert [device["class_name"] for device in npu] == ["mid"]
        assert len(api.ok("GET", "devices?class=entry&state=accepted")["results"]) == 2
        assert api.problem("GET", "devices?state=gone")["code"] == "invalid_parameter"

    def test_a_wrong_filter_points_at_its_column(self, api: Api) -> None:
        problem = api.problem("GET", "devices?filter=ram_mb%20%3E%3E%203")
        assert (problem["status"], problem["code"], problem["column"]) == (400, "invalid_filter", 9)

    def test_detail_has_capabilities_and_figures(self, api: Api, tenant: Tenant) -> None:
        device = make_devices(tenant, 1, class_name="")[0]
        store_capabilities(device=device, report=capability_report())
        detail = api.ok("GET", f"devices/{device.pk}")
        assert detail["capabilities"]["soc"] == "test-soc-1"
        assert detail["figures"]
        assert detail["assignments"] == []
        assert api.ok("GET", "capabilities")["figures"]

    def test_accept_reject_decommission(self, api: Api, tenant: Tenant) -> None:
        first, second = make_devices(tenant, 2, class_name="entry")
        Device.objects.update(state="pending")
        assert api.ok("POST", f"devices/{first.pk}/accept")["state"] == "accepted"
        assert api.ok("POST", f"devices/{second.pk}/reject")["state"] == "rejected"
        assert api.ok("POST", f"devices/{first.pk}/decommission")["state"] == "decommissioned"
        assert api.problem("POST", f"devices/{first.pk}/accept")["code"] == "device_state"

    def test_class_lifecycle_makes_versions(self, api: Api) -> None:
        first = api.ok("POST", "device-classes", {"name": "mid", **CLASS}, 201)
        assert first["version"] == 1
        assert (
            api.problem("POST", "device-classes", {"name": "mid", **CLASS})["code"] == "device_class_exists"
        )
        second = api.ok("PUT", "device-classes/mid", {**CLASS, "quality_floor": 0.95})
        assert (second["version"], second["quality_floor"]) == (2, 0.95)
        assert api.ok("GET", "device-classes")["results"] == [second]
        api.ok("DELETE", "device-classes/mid", status=204)
        assert api.problem("GET", "device-classes/mid")["code"] == "device_class_not_found"

    def test_a_class_has_an_objective_and_a_declared_power(self, api: Api) -> None:
        plain = api.ok("POST", "device-classes", {"name": "mid", **CLASS}, 201)
        assert (plain["objective"], plain["active_power_mw"]) == ("size", None)
        precisions = ["int8", "int8-qdq16"]
        body = {**CLASS, "objective": "latency", "active_power_mw": 900.0, "precisions": precisions}
        changed = api.ok("PUT", "device-classes/mid", body)
        assert (changed["objective"], changed["active_power_mw"]) == ("latency", 900.0)
        assert (changed["precisions"], changed["version"]) == (precisions, 2)
        problem = api.problem("PUT", "device-classes/mid", {**CLASS, "objective": "price"})
        assert "size, latency, quality" in problem["errors"]["objective"][0]
        problem = api.problem("PUT", "device-classes/mid", {**CLASS, "active_power_mw": 0})
        assert problem["code"] == "invalid_device_class"

    def test_a_classs_filter_is_checked_when_stored(self, api: Api) -> None:
        problem = api.problem("POST", "device-classes", {"name": "mid", **CLASS, "filter": "ram =="})
        assert problem["code"] == "invalid_filter"

    def test_provisioning_keys_are_shown_once(self, api: Api) -> None:
        created = api.ok(
            "POST", "provisioning-keys", {"name": "line", "accept": False, "tags": ["beta"]}, 201
        )
        assert created["key"].startswith("pfk_")
        listed = api.ok("GET", "provisioning-keys")["results"][0]
        assert "key" not in listed
        assert (listed["accept"], listed["tags"]) == (False, ["beta"])
        api.ok("DELETE", f"provisioning-keys/{created['id']}", status=204)
        assert api.ok("GET", "provisioning-keys")["results"][0]["revoked_at"]


class TestRollouts:
    @pytest.fixture
    def release(self, app: App, tenant: Tenant) -> Release:
        make_class(tenant, "entry")
        make_devices(tenant, 4, class_name="entry", ram_mb=3000)
        return make_release(app, ["entry"])

    def test_a_token_is_called_by_its_name(self, api: Api, release: Release) -> None:
        draft = api.ok("POST", "rollouts", {"name": "first", "release": str(release.pk)}, 201)
        api.ok("POST", f"rollouts/{draft['id']}/start")
        reasons = [row["reason"] for row in api.ok("GET", f"rollouts/{draft['id']}/decisions")["results"]]
        assert "Start: token test." in reasons

    def test_steering(self, api: Api, release: Release) -> None:
        body = {"name": "first", "release": str(release.pk), "policy": {"groups": [0.5, 1.0]}}
        draft = api.ok("POST", "rollouts", body, 201)
        assert draft["state"] == "draft"
        assert draft["policy"]["groups"] == [0.5, 1.0]
        path = f"rollouts/{draft['id']}"
        assert api.problem("POST", f"{path}/pause")["code"] == "rollout_state"
        running = api.ok("POST", f"{path}/start")
        assert running["state"] == "running"
        assert [(track["class_name"], track["eligible"]) for track in running["tracks"]] == [("entry", 4)]
        assert api.ok("POST", f"{path}/pause")["state"] == "paused"
        assert api.ok("POST", f"{path}/resume")["state"] == "running"
        assert api.problem("POST", f"{path}/tracks/entry/resume")["status"] == 409
        assert api.problem("POST", f"{path}/tracks/none/resume")["code"] == "not_found"
        assert api.ok("POST", f"{path}/cancel")["state"] == "cancelled"
        assert api.ok("GET", "rollouts?state=cancelled&model=minilm")["results"][0]["id"] == draft["id"]
        assert api.ok("GET", f"{path}/decisions")["results"]
        assert api.ok("GET", f"{path}/assignments")["results"] == []

    def test_only_drafts_are_deleted(self, api: Api, release: Release) -> None:
        draft = api.ok("POST", "rollouts", {"name": "first", "release": str(release.pk)}, 201)
        api.ok("DELETE", f"rollouts/{draft['id']}", status=204)
        assert api.problem("GET", f"rollouts/{draft['id']}")["code"] == "rollout_not_found"

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            ({"policy": {"groups": [0.5]}}, "invalid_policy"),
            ({"policy": {"grups": [1.0]}}, "invalid_policy"),
            ({"filter": "ram_mb"}, "invalid_filter"),
            ({"release": str(uuid.uuid4())}, "release_not_found"),
            ({"release": "no"}, "validation_failed"),
        ],
    )
    def test_what_cannot_be_followed_is_refused(
        self, api: Api, release: Release, change: dict[str, Any], code: str
    ) -> None:
        body = {"name": "first", "release": str(release.pk), **change}
        assert api.problem("POST", "rollouts", body)["code"] == code


class TestTelemetry:
    def test_summary_series_and_samples(self, api: Api, tenant: Tenant) -> None:
        version = tailored_version(api)
        build = Build.objects.get()
        device = make_devices(tenant, 1, class_name="mid")[0]
        InferenceRow.objects.create(
            tenant_id=tenant.pk,
            device_id=device.pk,
            build_id=build.pk,
            class_name="mid",
            at=datetime.now(UTC),
            window_s=10,
            provider="CPUExecutionProvider",
            emulated=True,
            requests=5,
            errors=0,
            latency_buckets=[0] * 10 + [5] + [0] * 23,
            latency_sum_ms=40,
        )
        summary = api.ok("GET", f"versions/{version['id']}/telemetry")["builds"][0]
        assert (summary["requests"], summary["devices"], summary["emulated"]) == (5, 1, True)
        points = api.ok("GET", f"builds/{build.pk}/latency")["points"]
        assert points[0]["p50_ms"] == pytest.approx(summary["p50_ms"])
        assert api.ok("GET", f"builds/{build.pk}/latency?since=2999-01-01T00:00:00Z")["points"] == []
        assert api.problem("GET", f"builds/{build.pk}/latency?since=soon")["code"] == "invalid_parameter"
        assert api.ok("GET", f"devices/{device.pk}/telemetry")["samples"] == []


class TestTenants:
    def test_nothing_of_another_tenant_is_seen_or_changed(
        self, api: Api, rival: Api, tenant: Tenant, app: App
    ) -> None:
        version = tailored_version(api)
        build = Build.objects.get()
        device = make_devices(tenant, 1, class_name="mid")[0]
        rollout = api.ok(
            "POST", "rollouts", {"name": "r", "release": str(make_release(app, ["mid"], number=7).pk)}, 201
        )
        key = api.ok("POST", "provisioning-keys", {"name": "k"}, 201)
        token = api.ok("POST", "tokens", {"name": "t", "scopes": ["models:read"]}, 201)
        hidden = [
            ("GET", "models/minilm"),
            ("GET", f"versions/{version['id']}"),
            ("DELETE", f"versions/{version['id']}"),
            ("POST", f"versions/{version['id']}/builds"),
            ("POST", f"versions/{version['id']}/preview"),
            ("POST", f"versions/{version['id']}/cancel"),
            ("GET", f"tailorings/{Tailoring.objects.get().pk}"),
            ("GET", f"builds/{build.pk}/layers"),
            ("GET", f"versions/{version['id']}/telemetry"),
            ("GET", f"builds/{build.pk}"),
            ("GET", f"builds/{build.pk}/manifest"),
            ("POST", f"builds/{build.pk}/cancel"),
            ("GET", f"builds/{build.pk}/latency"),
            ("GET", f"devices/{device.pk}"),
            ("POST", f"devices/{device.pk}/decommission"),
            ("GET", "device-classes/mid"),
            ("DELETE", "device-classes/mid"),
            ("GET", f"rollouts/{rollout['id']}"),
            ("POST", f"rollouts/{rollout['id']}/start"),
            ("DELETE", f"provisioning-keys/{key['id']}"),
            ("DELETE", f"tokens/{token['id']}"),
        ]
        for method, path in hidden:
            assert rival.problem(method, path)["status"] == 404, (method, path)
        lists = [
            "models",
            "versions",
            "builds",
            "releases",
            "devices",
            "device-classes",
            "rollouts",
            "provisioning-keys",
        ]
        for path in lists:
            assert rival.ok("GET", path)["results"] == [], path
        assert {row["subject_type"] for row in rival.ok("GET", "audit")["results"]} <= {
            "app",
            "token",
            "tenant",
        }


class TestIdempotency:
    def test_the_same_key_and_body_create_once(self, api: Api) -> None:
        body = {"name": "minilm"}
        first = api.send("POST", "models", body, Idempotency_Key="k1")
        again = api.send("POST", "models", body, Idempotency_Key="k1")
        assert (again.status_code, again.json()) == (201, first.json())
        assert again["Idempotency-Replayed"] == "true"
        assert Model.objects.count() == 1
        assert AuditEntry.objects.filter(action="model.create").count() == 1

    def test_another_body_under_the_same_key_is_refused(self, api: Api) -> None:
        api.ok("POST", "models", {"name": "one"}, 201, Idempotency_Key="k1")
        problem = api.problem("POST", "models", {"name": "two"}, Idempotency_Key="k1")
        assert (problem["status"], problem["code"]) == (422, "idempotency_key_reused")
        assert Model.objects.count() == 1

    def test_a_refusal_is_not_remembered(self, api: Api) -> None:
        assert api.problem("POST", "models", {"name": "Not A Slug"}, Idempotency_Key="k1")["status"] == 400
        assert not IdempotencyRecord.objects.exists()
        api.ok("POST", "models", {"name": "minilm"}, 201, Idempotency_Key="k1")

    def test_keys_belong_to_their_caller(self, api: Api, rival: Api) -> None:
        api.ok("POST", "models", {"name": "minilm"}, 201, Idempotency_Key="k1")
        rival.ok("POST", "models", {"name": "minilm"}, 201, Idempotency_Key="k1")
        assert Model.objects.count() == 2

    def test_secrets_are_not_stored(self, api: Api) -> None:
        body = {"name": "ci", "scopes": ["models:read"]}
        secret = api.ok("POST", "tokens", body, 201, Idempotency_Key="k1")["token"]
        assert api.ok("POST", "tokens", body, 201, Idempotency_Key="k1")["token"] is None
        stored = json.dumps(list(IdempotencyRecord.objects.values_list("body", flat=True)))
        assert secret not in stored

    def test_a_completion_with_a_key_forgets_a_damaged_file_all_the_same(self, api: Api) -> None:
        version = announced(api)
        file = f"versions/{version['id']}/files/model.onnx"
        api.problem("PUT", file, raw=b"x" * len(MODEL_BYTES))
        api.ok("PUT", file, raw=MODEL_BYTES[:-1])
        row = VersionFile.objects.get()
        UploadPart.objects.filter(file=row).update(size_bytes=row.size_bytes)
        VersionFile.objects.update(received_bytes=row.size_bytes)  # as a process that was killed leaves it
        problem = api.problem("POST", f"versions/{version['id']}/complete", Idempotency_Key="k1")
        assert problem["code"] == "digest_mismatch"
        api.ok("PUT", file, raw=MODEL_BYTES)
        api.ok("POST", f"versions/{version['id']}/complete", status=202, Idempotency_Key="k1")

    def test_answers_are_forgotten_in_time(self, api: Api) -> None:
        api.ok("POST", "models", {"name": "minilm"}, 201, Idempotency_Key="k1")
        made = IdempotencyRecord.objects.get().created_at
        assert sweep(now=made + ANSWERS_KEPT - timedelta(hours=1)).get("answers_dropped") is None
        assert sweep(now=made + ANSWERS_KEPT + timedelta(hours=1))["answers_dropped"] == 1

    def test_an_unusable_key_is_refused(self, api: Api) -> None:
        problem = api.problem("POST", "models", {"name": "minilm"}, Idempotency_Key="k" * 129)
        assert problem["code"] == "invalid_idempotency_key"


class TestStrictJson:
    @pytest.mark.parametrize(
        "path",
        [
            "audit?action=%00",
            "builds?class=a%00",
            "devices?search=%00",
            "versions?model=%00",
            "releases?model=%00",
        ],
    )
    def test_nul_in_a_query_is_refused(self, api: Api, path: str) -> None:
        problem = api.problem("GET", path)
        assert (problem["status"], problem["code"]) == (422, "invalid_parameter")

    @pytest.mark.parametrize(
        "body",
        [
            b"{",
            b'{"name": "a", "name": "b"}',
            b'{"name": NaN}',
            b'{"name": Infinity}',
            b'{"name": 1e999}',
            b'{"name": 9223372036854775808}',
            b'{"name": ' + b"9" * 5000 + b"}",
            b"[" * 100_000,
            b'{"name": ' + b"[" * 40 + b"]" * 40 + b"}",
            b'{"name": "\xff"}',
        ],
        ids=lambda body: str(body[:20]),
    )
    def test_malformed_bodies_answer_400(self, api: Api, body: bytes) -> None:
        problem = api.problem("POST", "models", raw=body, as_json="yes")
        assert (problem["status"], problem["code"]) == (400, "malformed_json")

    def test_a_body_is_not_read_beyond_its_limit(self, api: Api, settings: Any) -> None:
        settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100
        problem = api.problem("POST", "models", {"name": "m", "description": "x" * 100})
        assert (problem["status"], problem["code"]) == (413, "body_too_large")

    def test_a_body_that_is_no_object_is_refused(self, api: Api) -> None:
        assert api.problem("POST", "models", ["minilm"])["code"] == "validation_failed"

    def test_other_content_types_are_refused(self, api: Api) -> None:
        problem = api.problem("POST", "models", raw=b"name=x")
        assert (problem["code"], problem["title"]) == ("unsupported_media_type", "Unsupported media type")
        assert "application/octet-stream" in problem["detail"]
        assert "Send Content-Type: application/json." in problem["detail"]

    def test_a_method_that_is_not_there_is_named(self, api: Api) -> None:
        problem = api.problem("DELETE", "models")
        assert (problem["status"], problem["title"]) == (405, "Method not allowed")
        assert "DELETE" in problem["detail"]


class TestPages:
    def test_pages_follow_each_other_and_hold_everything_once(self, api: Api, tenant: Tenant) -> None:
        make_devices(tenant, 25, class_name="entry")
        seen: list[str] = []
        path = "devices?page_size=10"
        while path:
            page = api.ok("GET", path)
            seen += [device["id"] for device in page["results"]]
            path = page["next"].split("/api/v1/")[1] if page["next"] else ""
        assert len(seen) == len(set(seen)) == 25

    def test_a_forged_cursor_is_refused(self, api: Api) -> None:
        assert api.problem("GET", "models?cursor=%ff%fe")["code"] == "invalid_cursor"

    @pytest.mark.parametrize("path", ["devices", "models", "builds", "rollouts", "releases", "versions"])
    def test_queries_do_not_grow_with_rows(
        self, api: Api, app: App, tenant: Tenant, path: str, django_assert_max_num_queries: Callable[..., Any]
    ) -> None:
        for number in range(1, 7):
            release = make_release(app, ["entry", "mid"], number=number)
            make_devices(tenant, 1, class_name=f"c{number}")
            api.ok("POST", "rollouts", {"name": f"r{number}", "release": str(release.pk)}, 201)
            api.ok("POST", "models", {"name": f"m{number}"}, 201)
        with django_assert_max_num_queries(8):
            assert len(api.ok("GET", path)["results"]) >= 6


def test_policy_document_is_what_the_decision_reads(api: Api, app: App) -> None:
    from fleet.rollouts.decision import Policy

    release = make_release(app, ["entry"])
    rollout = api.ok("POST", "rollouts", {"name": "r", "release": str(release.pk)}, 201)
    assert msgspec.convert(rollout["policy"], Policy) == Policy()


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_concurrent_repeats_create_once(app: App) -> None:
    token = create_api_token(app=app, name="test", scopes=SCOPES, actor=ACTOR)[1]

    def post(_: int) -> tuple[int, Any]:
        try:
            response = Api(token).send("POST", "models", {"name": "minilm"}, Idempotency_Key="k1")
            return response.status_code, response.json()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(post, range(4)))
    assert [status for status, _ in answers] == [201] * 4
    assert all(body == answers[0][1] for _, body in answers)
    assert Model.objects.count() == 1
