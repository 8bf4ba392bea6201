"""One checker for every number that a user passes."""

import numpy as np


def number(
    name, value, *, least=None, above=None, most=None, below=None, whole=False, optional=False
):
    """The value as a float or an int.

    Args:
        name: The argument's name in messages.
        value: What was passed.
        least, above, most, below: Bounds. `least` and `most` are in the range, the others not.
        whole: Whether it must be a whole number. Defaults to `False`.
        optional: Whether `None` is allowed, and returned. Defaults to `False`.

    Raises:
        ValueError: It is not a finite number in the range.

    Example:

    >>> number("batch_size", 32.0, least=1, whole=True)
    32
    """
    if value is None and optional:
        return None
    bounds = [
        f"{word} {bound:g}"
        for word, bound in (
            ("of at least", least),
            ("above", above),
            ("of at most", most),
            ("below", below),
        )
        if bound is not None
    ]
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(
        value, (bool, complex)
    )
    if (
        is_number
        and np.isfinite(value)
        and (not whole or int(value) == value)
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    ):
        return int(value) if whole else float(value)
    kind = " ".join(["a", "whole number" if whole else "number", " and ".join(bounds)]).strip()
    argument = name.split("`")[1] if "`" in name else name
    quoted = name if "`" in name else f"`{name}`"
    raise ValueError(
        f"{quoted} must be {'None or ' if optional else ''}{kind}. Received: {argument}={value!r}"
    )
