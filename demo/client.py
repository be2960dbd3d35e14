"""A small client of the management API: what an app team would write in an afternoon."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import urllib3

PART_BYTES = 8 * 2**20


class ApiError(Exception):
    """A problem+json answer. ``code`` is stable; ``detail`` says what to do."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status = status
        self.problem = problem
        self.code = problem.get("code", "")
        super().__init__(
            f"{status} {self.code}: {problem.get('detail') or problem.get('title', '')} {problem}"
        )


class Client:
    """Calls ``/api/v1/`` with a bearer token."""

    def __init__(self, base_url: str, token: str) -> None:
        self._base = f"{base_url.rstrip('/')}/api/v1"
        self._headers = {"Authorization": f"Bearer {token}"}
        self._http = urllib3.PoolManager(retries=False, timeout=60.0)

    def call(self, method: str, path: str, body: Any = None, *, raw: bytes | None = None) -> Any:
        """One call. POSTs carry an idempotency key, so repeating one after a lost answer is safe.

        The server may be restarting: refused connections and 502/503 are repeated for 30 s.

        Raises:
            ApiError: the server's answer is a 4xx or 5xx.
        """
        headers = dict(self._headers)
        if method == "POST":
            headers["Idempotency-Key"] = str(uuid.uuid4())
        data = raw
        if raw is not None:
            headers["Content-Type"] = "application/octet-stream"
        elif body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        deadline = time.monotonic() + 30
        while True:
            try:
                response = self._http.request(method, f"{self._base}{path}", body=data, headers=headers)
            except urllib3.exceptions.HTTPError:
                if time.monotonic() > deadline:
                    raise
            else:
                if response.status not in (502, 503) or time.monotonic() > deadline:
                    break
            time.sleep(0.3)
        content = json.loads(response.data) if response.data else None
        if response.status >= 400:
            raise ApiError(response.status, content if isinstance(content, dict) else {})
        return content

    def get(self, path: str) -> Any:
        return self.call("GET", path)

    def post(self, path: str, body: Any = None) -> Any:
        return self.call("POST", path, body if body is not None else {})

    def all(self, path: str) -> list[Any]:
        """All pages of a list."""
        page = self.get(path)
        rows = list(page["results"])
        while page["next"]:
            page = self.get(page["next"].split("/api/v1", 1)[1])
            rows += page["results"]
        return rows

    def upload_version(self, model: str, files: list[tuple[str, Path, str]]) -> dict[str, Any]:
        """Upload a version in parts; returns it in state ``checking``.

        Args:
            files: (role, local file, path within the upload); role is ``model``, ``evaluation``
                or ``calibration``.
        """
        described = [
            {
                "role": role,
                "path": path,
                "size_bytes": local.stat().st_size,
                "sha256": hashlib.sha256(local.read_bytes()).hexdigest(),
            }
            for role, local, path in files
        ]
        version = self.post(f"/models/{model}/versions", {"files": described})
        for _, local, path in files:
            with local.open("rb") as file:
                offset = 0
                while part := file.read(PART_BYTES):
                    self.call(
                        "PUT", f"/versions/{version['id']}/files/{quote(path)}?offset={offset}", raw=part
                    )
                    offset += len(part)
        completed: dict[str, Any] = self.post(f"/versions/{version['id']}/complete")
        return completed

    def _send_part(self, address: str, part: bytes, offset: int) -> int:
        """Send a part; returns where to go on, also when an earlier try had arrived unnoticed."""
        try:
            self.call("PUT", address, raw=part)
        except ApiError as error:
            if error.code != "offset_mismatch":
                raise
            return int(error.problem["expected_offset"])
        return offset + len(part)

    def wait(
        self, path: str, done: Callable[[Any], bool], *, timeout_s: float, on_change: Callable[[Any], None]
    ) -> Any:
        """Poll ``path`` until ``done``; ``on_change`` sees every new answer.

        Raises:
            TimeoutError: after ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        last = None
        while True:
            answer = self.get(path)
            if answer != last:
                on_change(answer)
                last = answer
            if done(answer):
                return answer
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} did not get there within {timeout_s:.0f} s: {answer}")
            time.sleep(0.4)
