"""The networks of the series, one to a file; they import nothing of ours."""
