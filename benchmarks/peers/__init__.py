"""Other quantizers, each run in an environment of its own (:mod:`benchmarks.environments`).

The scripts here run under the peers' interpreters and import nothing of Pocketfleet.
:mod:`benchmarks.peers.catalogue` lists what is run and :mod:`benchmarks.peers.runner` runs it.
"""
