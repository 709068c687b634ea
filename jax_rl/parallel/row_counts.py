"""Numbers of rows that the devices divide, from a small set: each is a shape to compile programs for."""


def round_up(n: int, multiple: int) -> int:
    """The least multiple that is not below n."""
    return -(-n // multiple) * multiple


def row_bucket(rows: int, multiple: int) -> int:
    """How many rows hold so many: `multiple` times a power of two."""
    return multiple << (-(-rows // multiple) - 1).bit_length()
