"""On-policy distillation of image generators: flow matching and diffusion."""
