"""How each family of formats is written into a graph; :mod:`quantize_worker.steps.assemble` chooses."""
