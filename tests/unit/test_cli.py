"""The command line before anything runs: arguments, target files, the out folder; its progress and table."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from quantize_worker import cli
from quantize_worker.cli import out
from quantize_worker.cli.errors import BadInput
from quantize_worker.cli.progress import Progress
from quantize_worker.cli.table import summary, table
from quantize_worker.cli.targets import read_target, read_targets
from quantize_worker.engine import Tailored, TailorReport
from tests.simulators.model_facts import encoder, target

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "docs" / "targets").glob("*.json"))
LEAST: dict[str, Any] = {
    "name": "entry",
    "accelerator": "cpu",
    "precisions": ["int4"],
    "memory_bytes": 1000,
    "storage_bytes": 1000,
    "quality_floor": 0.9,
}


def written(folder: Path, file: str = "target.json", /, **changes: Any) -> Path:
    path = folder / file
    fields = {key: value for key, value in (LEAST | changes).items() if value is not ...}
    path.write_text(json.dumps(fields))
    return path


# Targets


def test_the_least_target_gets_defaults(tmp_path: Path) -> None:
    found = read_target(written(tmp_path))
    assert (found.version, found.execution_provider, found.emulated) == (1, "CPUExecutionProvider", False)
    assert (found.objective, found.latency_ms, found.speed.fp32_gflops) == ("size", None, 0.0)


@pytest.mark.parametrize(
    ("changes", "emulated"),
    [
        ({"accelerator": "npu"}, True),
        ({"accelerator": "npu", "execution_provider": "QNNExecutionProvider"}, False),
        ({"accelerator": "npu", "emulated": False}, False),
        ({"emulated": True}, True),
    ],
)
def test_an_accelerator_that_the_cpu_stands_in_for_is_emulated(
    tmp_path: Path, changes: dict[str, Any], emulated: bool
) -> None:
    assert read_target(written(tmp_path, **changes)).emulated is emulated


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": ...}, "name"),
        ({"name": "../up"}, "name"),
        ({"name": ""}, "name"),
        ({"accelerator": "tpu"}, "accelerator"),
        ({"precisions": []}, "precisions"),
        ({"precisions": ["int3"]}, "precisions["),
        ({"precisions": ["int4", "int4"]}, "precisions"),
        ({"memory_bytes": "1 GB"}, "memory_bytes"),
        ({"memory_bytes": 0}, "memory_bytes"),
        ({"storage_bytes": -1}, "storage_bytes"),
        ({"quality_floor": 97}, "quality_floor"),
        ({"latency_ms": 0}, "latency_ms"),
        ({"objective": "smallest"}, "objective"),
        ({"execution_provider": "cpu"}, "execution_provider"),
        ({"speed": {"gflops": 1}}, "gflops"),
        ({"speed": {"int8_gops": -1}}, "speed.int8_gops"),
        ({"qualty_floor": 0.9}, "qualty_floor"),
    ],
)
def test_a_wrong_target_is_refused_with_file_and_field(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(BadInput) as caught:
        read_target(path)
    assert caught.value.code == "bad_target"
    assert caught.value.message.startswith(f"{path}: field ")
    assert field in caught.value.message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe"])
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "target.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"target\.json") as caught:
        read_target(path)
    assert caught.value.code == "bad_target"


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    paths = [written(tmp_path, "a.json"), written(tmp_path, "b.json", name="ENTRY")]
    with pytest.raises(BadInput, match=r"b\.json: field name .* as in .*a\.json"):
        read_targets(paths)


def test_the_examples_of_the_guide_are_read() -> None:
    found = {each.name: each.emulated for each in read_targets(EXAMPLES)}
    assert found == {"flagship-npu": True, "midrange-gpu": True, "midrange-cpu": False, "entry": False}
    assert sorted(found) == [path.stem for path in EXAMPLES]


# Arguments


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert cli.main(["tailor", *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


def test_missing_and_unknown_arguments(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert refusal(capsys, "model.onnx").startswith("error: usage: ")
    assert "--target" in refusal(capsys, "model.onnx", "--out", tmp_path)
    arguments = ("model.onnx", "--target", "t.json", "--out", tmp_path / "out", "--fast")
    assert "--fast" in refusal(capsys, *arguments)
    assert cli.main([]) == 2


def test_missing_files_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model, wanted, to = tmp_path / "model.onnx", written(tmp_path), ("--out", tmp_path / "out")
    assert "missing_file" in refusal(capsys, model, "--target", tmp_path / "no.json", *to)
    assert f"{model}" in refusal(capsys, model, "--target", wanted, *to)
    model.touch()
    absent = tmp_path / "no.npz"
    for option in ("--eval", "--calibration"):
        assert f"missing_file: There is no readable set {absent}" in refusal(
            capsys, model, "--target", wanted, option, absent, *to
        )
    assert not (tmp_path / "out").exists()


def test_errors_as_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tailor", "--json"]) == 2
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["exit_code"], last["error"]["code"]) == (2, "usage")


def test_help_documents_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["tailor", "--help"])
    assert caught.value.code == 0
    listed = capsys.readouterr().out.split("exit codes:")[1]
    assert [line.split()[0] for line in listed.splitlines()[1:6]] == ["0", "1", "2", "3", "130"]


# The out folder


def test_an_out_folder_with_content_is_refused(tmp_path: Path) -> None:
    out.check(tmp_path, ["entry"], force=False)
    out.check(tmp_path / "new", ["entry"], force=False)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(BadInput) as caught:
        out.check(tmp_path, ["entry"], force=False)
    assert caught.value.code == "out_not_empty"
    out.check(tmp_path, ["entry"], force=True)


def test_force_replaces_earlier_results_only(tmp_path: Path) -> None:
    (tmp_path / "entry").mkdir()
    with pytest.raises(BadInput) as caught:
        out.check(tmp_path, ["entry"], force=True)
    assert caught.value.code == "out_not_ours"
    (tmp_path / "entry" / "report.json").touch()
    out.check(tmp_path, ["entry"], force=True)


def test_publishing_replaces_a_class_whole_and_leaves_the_rest(tmp_path: Path) -> None:
    place = tmp_path / "out"
    (place / "entry").mkdir(parents=True)
    (place / "entry" / "model.onnx").write_text("earlier")
    (place / "notes.txt").write_text("mine")
    with out.staging(place) as stage:
        (stage / "entry").mkdir()
        (stage / "entry" / "report.json").write_text("{}")
        (stage / "report.html").write_text("page")
        out.publish(stage, place)
    found = sorted(str(path.relative_to(place)) for path in place.rglob("*"))
    assert found == ["entry", "entry/report.json", "notes.txt", "report.html"]


def test_an_out_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput) as caught, out.staging(tmp_path / "file" / "out"):
        pass
    assert caught.value.code == "out_not_writable"


def test_a_failed_run_leaves_no_out_folder(tmp_path: Path) -> None:
    place = tmp_path / "out"

    def fail() -> None:
        with out.staging(place) as stage:
            (stage / "entry").mkdir()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not place.exists()


# Progress and results


def test_without_a_terminal_a_line_per_step() -> None:
    stream = io.StringIO()
    progress = Progress(stream, bar=False)
    for share in (0.1, 0.2):
        progress.step("inspect", "measure", share)
    progress.step("build", "assemble", 0.5)
    progress.end()
    assert stream.getvalue() == "inspect: measure (10 %)\nbuild: assemble (50 %)\n"


def test_on_a_terminal_one_line_that_goes_away() -> None:
    stream = io.StringIO()
    progress = Progress(stream, bar=True)
    progress.step("inspect", "measure", 0.5)
    progress.step("build", "assemble", 2.0)
    progress.end()
    assert "\n" not in stream.getvalue()
    assert f"{'█' * 12}{'░' * 12}  50 %  measure" in stream.getvalue()
    assert stream.getvalue().endswith("\r\x1b[K")


def test_a_class_without_a_build_says_why() -> None:
    reason = "storage would need 5.2 MB"
    report = TailorReport(
        facts=encoder(synthetic_samples=True),
        tailored=[Tailored(target=target("int4", emulated=True), reason=reason)],
        seconds=1.0,
        source=[],
    )
    lines = table(report).splitlines()
    assert lines[1].split()[:2] == ["entry", "impossible"]
    assert lines[1].endswith(reason)
    assert any(line.startswith("Unverified") for line in lines)
    assert any(line.startswith("Emulated") for line in lines)
    found = summary(report)["classes"][0]
    assert (found["outcome"], found["reason"], found["emulated"]) == ("impossible", reason, True)
