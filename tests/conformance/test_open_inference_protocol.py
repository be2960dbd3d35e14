"""The local API, by a third-party client: Open Inference Protocol v2 against ONNX Runtime itself."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import urllib3
from tritonclient.utils import InferenceServerException

from device_agent.inference_api import InferenceServer, bind, build_application
from device_agent.protocol.messages import Accelerator, InferenceAggregate
from device_agent.runtime import Runtime
from device_agent.store import Database, TelemetryQueue
from device_agent.telemetry import Telemetry
from tests.simulators.artifacts import make_artifact, run_model, tiny_inputs, tiny_model, typed_model

CPU = Accelerator(name="cpu", kind="cpu", execution_provider="CPUExecutionProvider", data_types=["fp32"])
MAX_REQUEST_BYTES = 200_000
DTYPES = {
    "FP16": "float16",
    "FP64": "float64",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


class LocalApi:
    """Serves models from files, as the agent does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runtime = Runtime([CPU], ram_bytes=2**30, threads=1)
        queue = TelemetryQueue(Database(folder / "state.db"))
        self.telemetry = Telemetry(queue, folder=folder, clock=lambda: 1000.0)
        application = build_application(
            self.runtime, meter=self.telemetry, version="1.2.3", max_request_bytes=MAX_REQUEST_BYTES
        )
        self.server = InferenceServer(application)
        listener = bind("127.0.0.1", 0)
        self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve(sockets=[listener])))
        self.thread.start()

    def serve(self, name: str, model: bytes, *, version: int = 1) -> None:
        folder = self.folder / f"{name}-{version}"
        folder.mkdir()
        (folder / "model.onnx").write_bytes(model)
        artifact = make_artifact({"model.onnx": model, "golden.npz": b"x"}, model=name, version=version)
        self.runtime.serve(self.runtime.load(folder, artifact.manifest))

    def close(self) -> None:
        self.server.stop()
        self.thread.join()
        self.runtime.close()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalApi]:
    api = LocalApi(tmp_path_factory.mktemp("api"))
    api.serve("tiny", tiny_model())
    api.serve("typed", typed_model())
    yield api
    api.close()


@pytest.fixture
def client(api: LocalApi) -> Iterator[Any]:
    with triton.InferenceServerClient(api.address) as client:
        yield client


def tensor(name: str, value: Any, datatype: str, *, binary: bool = True) -> Any:
    made = triton.InferInput(name, value.shape, datatype)
    made.set_data_from_numpy(value, binary_data=binary)
    return made


def post(api: LocalApi, path: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = urllib3.request("POST", f"http://{api.address}{path}", body=data, headers=headers, retries=False)
    return answer.status, answer.json()


def infer(api: LocalApi, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    return post(api, "/v2/models/tiny/infer", body, **headers)


def entry(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [1, 24], "datatype": "FP32", "data": [0.0] * 24, **changes}


class TestThirdPartyClient:
    @pytest.mark.parametrize("binary_input", [True, False])
    @pytest.mark.parametrize("binary_output", [True, False, None])
    def test_outputs_equal_those_of_onnx_runtime(
        self, client: Any, binary_input: bool, binary_output: bool | None
    ) -> None:
        inputs = tiny_inputs()
        outputs = None
        if binary_output is not None:
            outputs = [triton.InferRequestedOutput("y", binary_data=binary_output)]
        result = client.infer(
            "tiny", [tensor("x", inputs["x"], "FP32", binary=binary_input)], outputs=outputs
        )
        np.testing.assert_array_equal(result.as_numpy("y"), run_model(tiny_model(), inputs)["y"])

    @pytest.mark.parametrize("binary", [True, False])
    def test_every_data_type_goes_there_and_back(self, client: Any, binary: bool) -> None:
        values = {name: np.array([[0, 1], [1, 100]]).astype(dtype) for name, dtype in DTYPES.items()}
        names = [name for name in values if binary or name != "FP16"]  # the client sends FP16 as bytes only
        inputs = [
            tensor(f"in_{name}", values[name], name, binary=binary or name == "FP16") for name in values
        ]
        outputs = [triton.InferRequestedOutput(f"out_{name}", binary_data=binary) for name in names]
        result = client.infer("typed", inputs, outputs=outputs)
        for name in names:
            np.testing.assert_array_equal(result.as_numpy(f"out_{name}"), values[name])

    def test_what_the_server_says_of_itself(self, client: Any) -> None:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("tiny")
        assert client.is_model_ready("tiny", "1")
        assert not client.is_model_ready("none")
        assert not client.is_model_ready("tiny", "2")
        metadata = client.get_server_metadata()
        assert (metadata["name"], metadata["version"]) == ("pocketfleet-agent", "1.2.3")
        assert "binary_tensor_data" in metadata["extensions"]
        index = client.get_model_repository_index()
        assert [(one["name"], one["state"]) for one in index] == [("tiny", "READY"), ("typed", "READY")]

    def test_what_a_model_takes_and_gives(self, client: Any) -> None:
        metadata = client.get_model_metadata("tiny", "1")
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 24]}]
        assert metadata["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 16]}]
        assert metadata["properties"]["provider"] == "CPUExecutionProvider"

    def test_ids_and_versions_come_back(self, client: Any) -> None:
        result = client.infer(
            "tiny", [tensor("x", tiny_inputs()["x"], "FP32")], request_id="7", model_version="1", priority=2
        )
        response = result.get_response()
        assert (response["id"], response["model_name"], response["model_version"]) == ("7", "tiny", "1")

    def test_many_at_once(self, api: LocalApi) -> None:
        expected = run_model(tiny_model(), tiny_inputs())["y"]
        with triton.InferenceServerClient(api.address, concurrency=8) as client:
            requests = [
                client.async_infer("tiny", [tensor("x", tiny_inputs()["x"], "FP32")]) for _ in range(40)
            ]
            for request in requests:
                np.testing.assert_array_equal(request.get_result().as_numpy("y"), expected)

    def test_errors_reach_the_client_as_such(self, client: Any) -> None:
        with pytest.raises(InferenceServerException, match="no model 'none'"):
            client.infer("none", [tensor("x", tiny_inputs()["x"], "FP32")])


class TestBadRequests:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"name": "z"}, "unknown input 'z'"),
            ({"shape": [1, 23], "data": [0.0] * 23}, "has shape"),
            ({"shape": [24]}, "has shape"),
            ({"shape": [2, 24]}, "24 values"),
            ({"shape": [-1, 24]}, "not valid"),
            ({"shape": [2**39, 24]}, "24 values"),
            ({"shape": [1] * 20, "data": [0.0]}, "dimensions"),
            ({"datatype": "INT64", "data": [0] * 24}, "int64, expected float32"),
            ({"datatype": "INT64"}, "values are not INT64"),
            ({"datatype": "BYTES", "data": ["a"] * 24}, "BYTES is not supported"),
            ({"datatype": "FP128"}, "not supported"),
            ({"data": ["a"] * 24}, "values are not FP32"),
            ({"data": [True] * 24}, "values are not FP32"),
            ({"data": [[0.0], [0.0, 1.0]]}, "ragged"),
            ({"datatype": "INT8", "data": [300] * 24}, "values are not INT8"),
            ({"datatype": "BOOL", "data": [1] * 24}, "values are not BOOL"),
            ({"data": None}, "neither data nor"),
            ({"parameters": {"binary_data_size": 96}}, "longer than the body"),
            ({"parameters": {"binary_data_size": -1}}, "longer than the body"),
        ],
    )
    def test_an_input_that_does_not_fit(self, api: LocalApi, changes: dict[str, Any], message: str) -> None:
        status, answer = infer(api, {"inputs": [entry(**changes)]})
        assert status == 400
        assert message in answer["error"]

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (b"", "not valid"),
            (b"{", "not valid"),
            (b"[" * 100_000, "not valid"),
            (b'{"inputs": 3}', "not valid"),
            (b'{"inputs": []}', "input 'x' is missing"),
            ({"inputs": [entry(), entry()]}, "given twice"),
            ({"inputs": [entry()], "outputs": [{"name": "nope"}]}, "unknown output 'nope'"),
            ({"inputs": [entry()], "parameters": {"priority": 9}}, "priority"),
        ],
    )
    def test_a_request_that_does_not_fit(self, api: LocalApi, body: Any, message: str) -> None:
        status, answer = infer(api, body)
        assert status == 400
        assert message in answer["error"]

    @pytest.mark.parametrize("length", ["99999999", "-1", "x", "9" * 30])
    def test_a_wrong_header_length(self, api: LocalApi, length: str) -> None:
        status, answer = infer(api, {"inputs": [entry()]}, **{"Inference-Header-Content-Length": length})
        assert status == 400
        assert "Inference-Header-Content-Length" in answer["error"]

    def test_binary_data_of_another_size(self, api: LocalApi) -> None:
        head = json.dumps({"inputs": [{**entry(parameters={"binary_data_size": 4}), "data": None}]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        for tail, message in ((b"1234", "4 bytes, shape"), (b"12345678", "4 bytes, shape")):
            status, answer = infer(api, head + tail, **headers)
            assert (status, message in answer["error"]) == (400, True)

    def test_bytes_that_belong_to_nothing(self, api: LocalApi) -> None:
        head = json.dumps({"inputs": [entry()]}).encode()
        status, answer = infer(api, head + b"xxxx", **{"Inference-Header-Content-Length": str(len(head))})
        assert status == 400
        assert "belong to no input" in answer["error"]

    def test_a_body_over_the_limit(self, api: LocalApi) -> None:
        status, answer = infer(api, b" " * (MAX_REQUEST_BYTES + 1))
        assert status == 413
        assert str(MAX_REQUEST_BYTES) in answer["error"]

    def test_compression_is_refused_clearly(self, api: LocalApi) -> None:
        status, _ = infer(api, b"x", **{"Content-Encoding": "gzip"})
        assert status == 415

    @pytest.mark.parametrize(
        "path", ["/v2/models/none/infer", "/v2/models/tiny/versions/2/infer", "/v2/nothing", "/"]
    )
    def test_what_is_not_there(self, api: LocalApi, path: str) -> None:
        status, answer = post(api, path, {"inputs": [entry()]})
        assert status == 404
        assert answer["error"]

    def test_the_wrong_method(self, api: LocalApi) -> None:
        answer = urllib3.request("GET", f"http://{api.address}/v2/models/tiny/infer", retries=False)
        assert answer.status == 405
        assert answer.json()["error"]

    def test_a_host_name_that_is_not_loopback(self, api: LocalApi) -> None:
        status, answer = infer(api, {"inputs": [entry()]}, Host="evil.example")
        assert status == 403
        assert "loopback" in answer["error"]

    def test_only_loopback_is_listened_on(self) -> None:
        from device_agent.errors import ConfigError

        with pytest.raises(ConfigError, match="loopback"):
            bind("0.0.0.0", 0)

    def test_a_port_that_is_taken(self, api: LocalApi) -> None:
        from device_agent.errors import ConfigError

        with pytest.raises(ConfigError, match="--port"):
            bind("127.0.0.1", int(api.address.split(":")[1]))


def test_a_switch_loses_no_request(api: LocalApi) -> None:
    """While the build of a model is exchanged, every request is answered by the old or the new one."""
    api.serve("switched", tiny_model())
    inputs = tiny_inputs()
    allowed = [run_model(tiny_model(shift=shift), inputs)["y"] for shift in (0.0, 0.5)]
    stop, answers, errors = threading.Event(), [], []

    def ask() -> None:
        with triton.InferenceServerClient(api.address) as client:
            while not stop.is_set():
                try:
                    answers.append(client.infer("switched", [tensor("x", inputs["x"], "FP32")]).as_numpy("y"))
                except InferenceServerException as error:
                    errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while len(answers) < 5:
        pass
    api.serve("switched", tiny_model(shift=0.5), version=2)
    seen = len(answers)
    while len(answers) < seen + 5:
        pass
    stop.set()
    thread.join()
    api.runtime.withdraw("switched")
    assert not errors
    matches = [next(i for i, one in enumerate(allowed) if np.array_equal(one, answer)) for answer in answers]
    assert matches == sorted(matches)
    assert set(matches) == {0, 1}


def test_requests_are_counted_in_numbers_only(api: LocalApi, client: Any) -> None:
    api.telemetry.collect(flush=True)
    recorded: list[Any] = []
    api.telemetry.record = recorded.append  # type: ignore[method-assign,assignment]
    for _ in range(3):
        client.infer("tiny", [tensor("x", tiny_inputs()["x"], "FP32")])
    infer(api, {"inputs": [entry(name="wrong")]})  # the caller's mistake is not the build's
    api.telemetry.collect(flush=True)
    (aggregate,) = [one for one in recorded if isinstance(one, InferenceAggregate)]
    assert (aggregate.requests, aggregate.errors, sum(aggregate.latency_buckets)) == (3, 0, 3)
    assert aggregate.build == api.runtime.model("tiny").manifest.build
    assert aggregate.latency_sum_ms > 0
