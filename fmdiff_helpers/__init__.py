"""Diffusion models on Fashion-MNIST, one concept a module: `from fmdiff_helpers.diffusion import add_noise`."""
