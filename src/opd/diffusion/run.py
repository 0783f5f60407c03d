"""A denoising run (placeholder until the diffusion branch lands)."""

from opd.diffusion.prepare import prepare


class DenoisingRun:
    @staticmethod
    def load(config, objects):  # type: ignore[no-untyped-def]
        return prepare(config, objects)
