"""Every figure that Pocketfleet claims, each against something named, one command each.

``python -m benchmarks`` lists them, ``python -m benchmarks NAME`` runs one. A benchmark is a module
of this package with ``DESCRIPTION`` (one line), ``PREDICTION`` (written down before the first run),
optional ``PEERS`` (requirement pins, installed into an environment of their own) and
``run(context) -> list[Figure]``.
"""
