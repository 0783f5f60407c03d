"""Output of a run: folder, log, terminal, model card, and the metric table they share."""
