"""Every figure that Pocketfleet claims, each against something named, one command each.

``python -m benchmarks`` lists them, ``python -m benchmarks NAME`` runs one. A benchmark is a module
of this package with ``DESCRIPTION`` (one line), ``PREDICTION`` (written down before the first run)
and ``run(context) -> list[Figure]``. Its peers are either ``PEERS``, requirement pins of one
environment that must install, or ``ENVIRONMENTS``, named environments of pins by pip call: one that
does not install is told of and left out. Scripts that run in them are in :mod:`benchmarks.peers`.
"""
