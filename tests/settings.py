"""Django settings of the tests: the real ones, with all state in a folder that goes away.

``POCKETFLEET_DATABASE_URL`` and ``POCKETFLEET_BROKER_URL`` are honoured, so that the same tests
run on PostgreSQL and RabbitMQ; ``POCKETFLEET_VAR`` is not, so that no test touches real state.
"""

import atexit
import os
import shutil
import tempfile

_var = tempfile.mkdtemp(prefix="pocketfleet-tests-")
atexit.register(shutil.rmtree, _var, ignore_errors=True)
for _name in ("POCKETFLEET_BROKER_FOLDER", "POCKETFLEET_BLOBS_URL", "POCKETFLEET_KEYS"):
    os.environ.pop(_name, None)
os.environ["POCKETFLEET_VAR"] = _var
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from fleet.settings import *  # noqa: E402, F403
from fleet.settings import DATABASES  # noqa: E402

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # speed alone
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    for _alias, _database in DATABASES.items():
        # A real file: several threads and WAL, as in production.
        _database["TEST"] = {"NAME": f"{_var}/test-{_alias}.sqlite3"}
STATIC_ROOT.mkdir()  # noqa: F405
