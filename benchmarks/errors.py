"""What can keep a benchmark from giving figures.

::

    BenchmarkError
    ├── UnknownBenchmark   no such name              exit code 2
    └── BenchmarkFailed    it did not run to its end exit code 3
"""

from __future__ import annotations


class BenchmarkError(Exception):
    """Base of the tree; the message says what to do."""

    exit_code = 3


class UnknownBenchmark(BenchmarkError):
    exit_code = 2


class BenchmarkFailed(BenchmarkError):
    exit_code = 3
