"""Diffusion models on Fashion-MNIST, one concept a module: `from fmdiff_helpers.diffusion import add_noise`."""

import os

# OpenMP's threads wait by spinning, which slows everything else on a busy machine. On two cores beside two busy
# processes, 60 training steps of `unet` take 139 s so and 60 s with threads that sleep; alone 32 and 37 s (medians of
# 3, benchmarks/busy.py). PyTorch reads this once, when it is loaded; a setting of the user's own stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
