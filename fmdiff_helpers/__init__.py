"""Diffusion models on Fashion-MNIST, one concept a module: `from fmdiff_helpers.diffusion import add_noise`."""

import os

# By default, waiting OpenMP threads spin, which slows everything else on a busy machine. On two cores beside two busy
# processes, 60 training steps of `unet` take 139 s with spinning threads and 60 s with sleeping ones; on a quiet
# machine 32 and 37 s (medians of 3, benchmarks/busy.py). PyTorch reads this when it is loaded. A user's setting stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
