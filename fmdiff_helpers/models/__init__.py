"""The networks of the series, one per file. They import nothing else from this package.

The class of a whole network has a `kind`, as cards name it: "denoiser", "autoencoder" or "classifier".
"""
