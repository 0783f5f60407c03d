"""An identity autoencoder, for pipelines whose models work on pixels."""

from __future__ import annotations

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, zeros


class Pixels(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers has no annotations
    """An autoencoder whose latents are the images themselves, with the interface of ``AutoencoderKL``.

    One entry of ``block_out_channels`` makes a pipeline's ``vae_scale_factor`` 1: heights and widths are in pixels.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        block_out_channels: tuple[int, ...] = (1,),
        latent_channels: int = 3,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ) -> None:
        super().__init__()
        # Pipelines read a dtype and device from a parameter or buffer, and a weights file cannot be empty.
        self.register_buffer("anchor", zeros(1))

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """The images as a distribution of zero variance.

        Args:
            x: [B, C, H, W], in [-1, 1].
        """
        moments = DiagonalGaussianDistribution(_without_spread(x), deterministic=True)
        return AutoencoderKLOutput(latent_dist=moments) if return_dict else (moments,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: object = None) -> DecoderOutput | tuple[Tensor]:
        """The latents unchanged.

        Args:
            z: [B, C, H, W].
        """
        return DecoderOutput(sample=z) if return_dict else (z,)

    def forward(self, sample: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Encode and decode: the same images."""
        return self.decode(sample, return_dict=return_dict)


def _without_spread(x_BCHW: Tensor) -> Tensor:
    """[B, 2C, H, W]: means, and log-variances that a deterministic distribution ignores."""
    return x_BCHW.repeat(1, 2, *(1 for _ in x_BCHW.shape[2:]))
