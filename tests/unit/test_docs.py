"""The guides against the code: settings, codes, commands and links that they name exist, and all are named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from device_agent.config import AgentConfig
from models_registry.services.checks import CANCELLED, CHECK_FAILED
from quantize_worker.contract import RefusalCode

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docker" / "README.md", *DOCS.rglob("*.md")]
PACKAGES = ("fleet", "tenancy", "models_registry", "quantize_worker", "device_agent", "blobstore")
INTERNAL = {"POCKETFLEET_SUPERVISED"}  # set by the supervisor for its children, not by people
SOURCE = "\n".join(module.read_text() for package in PACKAGES for module in (ROOT / package).rglob("*.py"))


def test_operator_guide_lists_every_setting_that_is_read_and_no_other() -> None:
    read = set(re.findall(r'"(POCKETFLEET_[A-Z_]+)"', SOURCE)) - INTERNAL
    read = {name for name in read if not name.startswith("POCKETFLEET_AGENT_")}
    guide = (DOCS / "operator-guide.md").read_text()
    rows = [line.split("|")[1] for line in guide.splitlines() if line.startswith("| `POCKETFLEET_")]
    listed = {name for row in rows for name in re.findall(r"POCKETFLEET_[A-Z_]+", row)}
    assert listed == read


def test_agent_guide_lists_every_setting() -> None:
    section = (DOCS / "agent-guide.md").read_text().split("## Settings")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert listed == {field.name for field in msgspec.structs.fields(AgentConfig)}


@pytest.mark.parametrize("guide", ["user-guide.md", "operator-guide.md"])
def test_codes_in_the_tables_are_codes_of_the_program(guide: str) -> None:
    text = (DOCS / guide).read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([a-z][a-z0-9_]+)`", row)}
    codes = {name for name in named if "_" in name and not name.startswith("root_")}
    assert codes
    missing = {code for code in codes if f'"{code}"' not in SOURCE}
    assert missing == set()


def test_the_user_guide_says_what_to_do_about_every_refusal() -> None:
    table = (DOCS / "user-guide.md").read_text().split("A version that is `refused`")[1]
    named = set(
        re.findall(r"`([a-z_]+)`", "".join(row.split("|")[1] for row in table.splitlines() if "|" in row))
    )
    assert named == {*get_args(RefusalCode), CHECK_FAILED, CANCELLED}


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(text: Path) -> None:
    for label, target in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", text.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (text.parent / path).resolve() if path else text
        assert linked.exists(), f"{label}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, target


@pytest.mark.parametrize("record", sorted((DOCS / "adr").glob("0*.md")), ids=lambda path: path.name)
def test_decision_records_are_short_and_complete(record: Path) -> None:
    lines = record.read_text().splitlines()
    assert len(lines) <= 40
    assert lines[0].startswith(f"# {record.name[:4]} ")
    for part in ("**Context.**", "**Decision.**", "**Consequences.**", "**Measured"):
        assert any(part in line for line in lines) or (
            part == "**Measured" and "**Seen.**" in record.read_text()
        )
    assert record.name in (DOCS / "adr" / "README.md").read_text()
