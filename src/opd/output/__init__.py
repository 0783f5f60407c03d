"""What a run writes: log, terminal, model card, folder."""
