"""The networks of the series, one per file. They import nothing else from this package."""
