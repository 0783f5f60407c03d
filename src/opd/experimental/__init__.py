"""Options that gained nothing in our own measurements; they work and are tested."""
