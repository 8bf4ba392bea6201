"""One checker for every number that a user passes."""

import operator

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
    bounds = (
        ("of at least", least, operator.ge),
        ("above", above, operator.gt),
        ("of at most", most, operator.le),
        ("below", below, operator.lt),
    )
    bounds = [each for each in bounds if each[1] is not None]
    is_number = isinstance(value, (int, float, np.number))
    if (
        is_number
        and not isinstance(value, (bool, complex))
        and np.isfinite(value)
        and (not whole or int(value) == value)
        and all(holds(value, bound) for _, bound, holds in bounds)
    ):
        return int(value) if whole else float(value)
    told = " and ".join(f"{word} {bound:g}" for word, bound, _ in bounds)
    kind = f"a {'whole ' if whole else ''}number {told}".strip()
    argument = name.split("`")[1] if "`" in name else name
    quoted = name if "`" in name else f"`{name}`"
    raise ValueError(
        f"{quoted} must be {'None or ' if optional else ''}{kind}. Received: {argument}={value!r}"
    )
