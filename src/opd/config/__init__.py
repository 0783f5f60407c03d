"""The run file: every key, its default and its meaning. Nothing here imports torch; ``opd.config.read`` reads it."""
