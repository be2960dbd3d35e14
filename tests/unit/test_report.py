"""The report: well-formed, self-contained, escaped, honest about what is emulated or unverified."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quantize_worker import report
from quantize_worker.contract import KeptNode, ModelFacts, ParetoPoint, QualityReport, SourceFile, Target
from quantize_worker.engine import Attempt, Tailored, TailorReport
from quantize_worker.plan import consider, pareto
from quantize_worker.report import charts
from tests.simulators.model_facts import EVERY, KB, MB, encoder, layer, model, target

HOSTILE = "<script>alert('x')</script>\"&"
VOID = {"meta", "br"}


class Reader(HTMLParser):
    """Checks nesting; collects tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def tailored(facts: ModelFacts, wanted: Target, *qualities: float) -> Tailored:
    """A class with an attempt per quality, each of the class's first plan."""
    outcome = consider(facts, wanted)
    attempts = []
    for value in qualities:
        good = value >= wanted.quality_floor
        quality = QualityReport(
            metric="cosine",
            value=value,
            cosine=value,
            top1_agreement=1.0,
            samples=64,
            confidence=0.999,
            interval=(value - 0.01, min(1.0, value + 0.01)),
        )
        attempts.append(
            Attempt(
                plan=outcome.candidates[0],
                verdict="accepted" if good else "rejected",
                reason=f"measured {value}",
                quality=quality,
                size_bytes=6 * MB,
                memory_bytes=20 * MB,
                latency_ms=3.25,
                provider="CPUExecutionProvider",
            )
        )
    built = bool(attempts) and attempts[-1].verdict == "accepted"
    return Tailored(
        target=wanted,
        plan=attempts[-1].plan if attempts else None,
        attempts=attempts,
        outcome="built" if built else "impossible",
        reason=attempts[-1].reason if attempts else outcome.impossible,
        pareto=pareto(facts, wanted),
    )


def written(folder: Path, facts: ModelFacts, *classes: Tailored, name: str = "model.onnx") -> Reader:
    source = [SourceFile(path=name, sha256="ab" * 32, size_bytes=facts.source_bytes)]
    whole = TailorReport(facts=facts, tailored=list(classes), seconds=2.0, source=source)
    report.write(whole, folder, model=name)
    return read((folder / "report.html").read_text())


def loaded(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_build_with_a_rejected_attempt(tmp_path: Path) -> None:
    (tmp_path / "entry").mkdir()
    (tmp_path / "entry" / "model.onnx").write_bytes(b"graph")
    page = written(tmp_path, encoder(), tailored(encoder(), target(*EVERY), 0.95, 0.985))
    words = " ".join(page.text)
    for expected in (
        "1 of 1 classes have a build",
        "measured 0.95",
        "measured 0.985",
        "0.9850 (cosine, 0.9750 to 0.9950 at 99.9 %, 64 samples)",
        "Predicted against measured",
        "Layer by layer (7)",
        "dense5",
        "onnxruntime",
        "ab" * 32,
    ):
        assert expected in words
    assert page.tags.count("svg") == 3
    assert ("class", "mark rejected") in page.attributes
    assert ("class", "mark accepted") in page.attributes
    found = loaded(tmp_path / "entry" / "report.json")
    assert (found["outcome"], len(found["attempts"])) == ("built", 2)
    assert [file["path"] for file in found["files"]] == ["model.onnx"]
    assert sum(found["formats"].values()) == pytest.approx(1.0)
    assert loaded(tmp_path / "report.json")["classes"] == [found]


def test_an_impossible_class_names_what_would_do(tmp_path: Path) -> None:
    wanted = target("int8", storage_bytes=50 * KB)
    page = written(tmp_path, encoder(), tailored(encoder(), wanted))
    found = loaded(tmp_path / "entry" / "report.json")
    assert found["nearest"]["budget"] == "storage"
    assert found["nearest"]["needed"] > 50 * KB
    assert "What would do" in page.text
    assert found["nearest"]["reason"] in " ".join(page.text)
    assert found["files"] == []


def test_nothing_from_outside_becomes_markup(tmp_path: Path) -> None:
    facts = model(
        layer(HOSTILE, MB),
        tool_versions={HOSTILE: HOSTILE},
        prepared=[HOSTILE],
        kept=[KeptNode(name=HOSTILE, operator=HOSTILE, reason=HOSTILE)],
        operators={HOSTILE: 1},
    )
    each = tailored(facts, target("int8"), 0.99)
    each.reason = each.attempts[0].reason = each.attempts[0].provider = HOSTILE
    page = written(tmp_path, facts, each, name=HOSTILE)
    assert "script" not in page.tags
    assert "".join(page.text).count(HOSTILE) >= 10


def test_the_page_needs_no_other_file_and_no_script(tmp_path: Path) -> None:
    page = written(tmp_path, encoder(), tailored(encoder(), target(*EVERY), 0.99))
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert name != "src"
        assert name != "href" or (value or "").startswith("#")
    style = page.text[page.text.index(next(each for each in page.text if ":root" in each))]
    assert "url(" not in style
    assert "@import" not in style


@pytest.mark.parametrize("shown", [True, False])
def test_unverified_and_emulated_are_said(tmp_path: Path, shown: bool) -> None:
    facts = encoder(synthetic_samples=shown)
    wanted = target("int8-qdq16", accelerator="npu", emulated=shown)
    page = written(tmp_path, facts, tailored(facts, wanted, 0.99))
    assert ("unverified" in page.text) is shown
    assert ("emulated" in page.text) is shown
    assert loaded(tmp_path / "entry" / "report.json")["unverified"] is shown


def test_figures_that_are_no_numbers_do_not_break_it(tmp_path: Path) -> None:
    page = written(tmp_path, encoder(), tailored(encoder(), target(*EVERY), math.nan))
    assert "nan" in " ".join(page.text)
    coordinates = [value or "" for name, value in page.attributes if name in ("cx", "cy", "d", "points")]
    assert coordinates
    assert not any("nan" in value or "inf" in value for value in coordinates)
    assert loaded(tmp_path / "entry" / "report.json")["attempts"][0]["quality"]["value"] is None


def point(size: int, quality: float) -> ParetoPoint:
    return ParetoPoint(size_bytes=size, memory_bytes=size, latency_ms=1.0, quality=quality, formats={})


@pytest.mark.parametrize(
    ("qualities", "floor"), [([], 0.9), ([1.0], 1.0), ([1.0, 1.0], 0.0), ([0.2, 0.99], 0.9)]
)
def test_the_front_is_drawn_within_its_box(qualities: list[float], floor: float) -> None:
    points = [point((index + 1) * MB, quality) for index, quality in enumerate(qualities)]
    drawn = charts.front(points, [], floor=floor, storage_bytes=2 * MB)
    assert bool(drawn) is bool(qualities)
    for name, value in read(drawn).attributes:
        if name in ("cx", "cy", "x1", "x2", "y1", "y2"):
            assert 0 <= float(value or "nan") <= charts.WIDTH


def test_better_builds_are_drawn_higher_and_larger_ones_further_right() -> None:
    drawn = charts.front([point(MB, 0.95), point(4 * MB, 0.999)], [], floor=0.9, storage_bytes=MB)
    places = [float(value or 0) for name, value in read(drawn).attributes if name in ("cx", "cy")]
    assert places[0] < places[2]
    assert places[1] > places[3]


def test_shares_fill_the_bar() -> None:
    drawn = read(charts.stacked({"int4-b32": 0.7, "int8-b128": 0.3}))
    widths = [float(value or 0) for name, value in drawn.attributes if name == "width"]
    assert sum(widths) == pytest.approx(charts.WIDTH)


def test_a_figure_that_was_not_predicted_has_no_ratio() -> None:
    assert charts.ratios([("Size", math.nan), ("Latency", 0.0)]) == ""
    assert "Size" in charts.ratios([("Size", 1.1), ("Latency", math.inf)])


def test_records_are_read_back(tmp_path: Path) -> None:
    written(tmp_path, encoder(), tailored(encoder(), target(*EVERY), 0.99))
    found = msgspec.json.decode((tmp_path / "report.json").read_bytes(), type=report.Record)
    assert read(report.page(found)).text
