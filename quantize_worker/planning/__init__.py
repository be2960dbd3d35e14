"""What the planner is made of; :mod:`quantize_worker.plan` is what others import.

Pure: facts and target in, numbers and sentences out.
"""
