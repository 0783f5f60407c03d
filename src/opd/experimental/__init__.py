"""Options without a measured gain; they work and are tested."""
