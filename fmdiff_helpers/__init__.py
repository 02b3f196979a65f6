"""Diffusion models on Fashion-MNIST, one concept a module: `from fmdiff_helpers.diffusion import add_noise`."""

import os

# By default, waiting OpenMP threads spin for some milliseconds, which slows everything else on a busy machine: 60
# training steps of `unet` on two cores, beside two busy processes, take 139 s, and 66 s with threads that soon sleep.
# Those that sleep at once slow lesson 03 on a quiet machine: 86 s, where spinning takes 68 s, and a thousand turns 73 s
# (medians, benchmarks/README.md). PyTorch reads this when it is loaded. A user's own setting stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
