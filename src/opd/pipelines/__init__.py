"""Pipelines: a graph of stages, each of which leaves an ordinary model folder that others name as student or teacher.

Only ``average``, and the worker process with ``opd.api`` in it, import torch.
"""
