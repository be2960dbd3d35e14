"""The schema is valid OpenAPI 3.1, complete, and served with its page from this server alone."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from django.contrib.staticfiles import finders
from django.core.management import call_command
from django.test import Client
from django.urls import URLPattern

from fleet.management_api.urls import v1

METHODS = ("get", "post", "put", "delete")


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("schema") / "schema.json"
    call_command(
        "spectacular", "--validate", "--fail-on-warn", "--format", "openapi-json", "--file", str(path)
    )
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def operations(schema: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, m, item[m]) for path, item in schema["paths"].items() for m in METHODS if m in item]


def test_it_is_3_1_and_has_every_address(schema: dict[str, Any]) -> None:
    assert schema["openapi"].startswith("3.1")
    described = {re.sub(r"\{\w+\}", "{}", path) for path in schema["paths"]}
    for pattern in v1:
        assert isinstance(pattern, URLPattern)
        assert "/api/v1/" + re.sub(r"<[^>]+>", "{}", str(pattern.pattern)) in described


def test_every_operation_has_summary_tag_and_problem(schema: dict[str, Any]) -> None:
    for path, method, operation in operations(schema):
        assert operation.get("summary"), (path, method)
        assert operation["tags"] != ["api"], (path, method)
        problem = operation["responses"]["default"]["content"]["application/problem+json"]
        assert problem["schema"] == {"$ref": "#/components/schemas/Problem"}
        assert {"token": []} in operation["security"]


def test_every_creating_post_takes_an_idempotency_key(schema: dict[str, Any]) -> None:
    creating = [
        (path, operation)
        for path, method, operation in operations(schema)
        if method == "post" and {"201", "202"} & set(operation["responses"]) and "retry" not in path
    ]
    assert len(creating) >= 9
    for path, operation in creating:
        if path.endswith(("/recheck", "/complete")):
            continue  # creates nothing: repeating it is harmless without a key
        assert "Idempotency-Key" in {p["name"] for p in operation["parameters"]}, path


def test_views_name_scopes_for_all_their_methods() -> None:
    for pattern in v1:
        view = pattern.callback.view_class  # type: ignore[attr-defined]
        assert {m.upper() for m in METHODS if hasattr(view, m)} == set(view.scopes), view


def test_schema_and_page_need_no_token_and_no_other_server(db: None) -> None:
    client = Client()
    assert client.get("/api/schema").status_code == 200
    page = client.get("/api/docs")
    text = page.content.decode()
    assert page.status_code == 200
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    for address in re.findall(r'(?:src|href)="/static/([^"]+)"', text):
        assert finders.find(address), address
    assert "script-src" not in page["Content-Security-Policy"]  # falls back to default-src 'self'
    assert "default-src 'self'" in page["Content-Security-Policy"]
    assert "docs.js" not in text  # says that one is signed in


def test_the_lists_of_versions_say_what_they_leave_out(schema: dict[str, Any]) -> None:
    for path in ("/api/v1/versions", "/api/v1/models/{name}/versions"):
        assert "state=uploading" in schema["paths"][path]["get"]["description"]
