"""Tasks of the bundled models: prompts, environments and answer checks."""
