"""The networks of the series, one per file. Of this package they import `schedules` alone.

The class of a whole network has a `kind`, as cards name it: "denoiser", "autoencoder",
"classifier" or "encoder".
"""
