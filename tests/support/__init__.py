"""Helpers of the tests: tiny models, tokenizers, pipelines and run folders, made on the spot."""
