"""Prompts, tasks by name, answer checks and the order of prompts."""
