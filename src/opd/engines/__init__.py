"""Whatever generates tokens."""
