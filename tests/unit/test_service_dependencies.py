"""Each service imports nothing beyond its own locked set: it installs without the others."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOAD = """
import importlib, importlib.metadata, json, pkgutil, re, sys
allowed = set(json.loads(sys.argv[1]))
normal = lambda name: re.sub(r"[-_.]+", "-", name).lower()
absent = {
    top for top, owners in importlib.metadata.packages_distributions().items()
    if not allowed & {normal(owner) for owner in owners}
}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
for package in sys.argv[2:]:
    module = importlib.import_module(package)
    for found in pkgutil.walk_packages(module.__path__, package + "."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
print(len(absent))
"""


def locked(name: str) -> set[str]:
    """Names of the distributions in ``requirements/<name>.txt``."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    return {normal(line) for line in re.findall(r"^([A-Za-z0-9._-]+)==", text, flags=re.MULTILINE)}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(
    ("requirements", "packages"),
    [("agent", ["device_agent"]), ("worker", ["quantize_worker", "blobstore"])],
)
def test_it_needs_only_its_own_set(requirements: str, packages: list[str]) -> None:
    allowed = json.dumps(sorted(locked(requirements) | {"pocketfleet", "setuptools"}))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, allowed, *packages], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 10, "nothing was hidden: the test showed nothing"
