"""One file per axis value: its settings, what it needs, how it is built, and its words for map and report.

Nothing here imports torch at load; ``build`` imports what it needs.
"""
