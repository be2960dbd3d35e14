"""One-shot setup of the composed system; runs before anything else and may run again at any time.

Applies migrations, makes the first tenant, login, API token, provisioning key and signing keys
(``manage.py setup_embedded``), then copies what agents and the web process need, and nothing more,
into volumes of their own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path


def manage(*arguments: str) -> None:
    subprocess.run([sys.executable, "manage.py", *arguments], check=True)


def hand_over(credentials_path: Path, folder: Path) -> None:
    """Put the provisioning key and the TUF root where agents may read them; the login stays here."""
    credentials = json.loads(credentials_path.read_text())
    key = folder / "provisioning_key"
    key.touch(mode=0o600)
    key.write_text(credentials["provisioning_key"])
    shutil.copyfile(credentials["root_json_path"], folder / "root.json")


def hand_over_assignment_keys(keys: Path, folder: Path) -> None:
    """The web process signs assignments and nothing else: it gets that key of each tenant only."""
    for key in keys.glob("*/assignment.pem"):
        target = folder / key.parent.name / key.name
        target.parent.mkdir(mode=0o700, exist_ok=True)
        target.touch(mode=0o600)
        target.write_bytes(key.read_bytes())


def main() -> None:
    manage("migrate", "--noinput")
    manage("setup_embedded")
    hand_over(Path(os.environ["POCKETFLEET_VAR"]) / "credentials.json", Path("/agents"))
    hand_over_assignment_keys(Path(os.environ["POCKETFLEET_KEYS"]), Path("/web-keys"))


if __name__ == "__main__":
    main()
