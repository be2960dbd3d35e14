"""The demo: the main job on a real model, end to end, with six emulated phones.

It uses only what any user has: the REST API, the agent's command line and the agent's local
inference API. Run it with ``make demo``.
"""
