"""What a reader may set a number to."""

LARGEST_SEED = 2**32  # as for the command


def check_whole(name: str, value: int, least: int, most: int) -> None:
    """Raise ValueError unless `value`, which is called `name`, is a whole number from `least` to `most`."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; expected a whole number from {least} to {most}")
