"""On-policy distillation of diffusion and flow-matching models. Needs the ``diffusion`` extra."""
