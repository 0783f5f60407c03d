"""Pipelines: a graph of stages. Each stage writes a model folder that later stages use as student or teacher.

Only ``average`` and the worker process import torch.
"""
