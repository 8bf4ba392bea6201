"""Learned schedules as Python code that needs only Keras."""

import inspect
import re
from collections.abc import Mapping

import keras

from keras_fds import optimizers
from keras_fds.export.snippet import (
    PiecewiseLinear,
    ScheduledNumber,
    piecewise_constant,
    tensor_operator,
)
from keras_fds.schedules import BucketedSchedule

_HEADER = '''"""{name} with learned schedules, for Keras without keras_fds.

    model.compile(make_optimizer(horizon=epochs * batches_per_epoch), loss=...)

The schedules stretch to any horizon. They belong to this optimizer; in any other they mean
something else. To train a saved and loaded model further, compile it with this optimizer again.
"""'''


def python_snippet(
    schedules: Mapping[str, BucketedSchedule], optimizer: keras.optimizers.Optimizer
) -> str:
    """Python code that makes the optimizer with its learned schedules and needs only Keras.

    The code defines `make_optimizer(horizon)`; `horizon` defaults to the schedules' own. A schedule
    of one bucket becomes a plain number. Numbers that change in time are computed from the
    optimizer's iteration inside the compiled training step, so they are right with any
    `steps_per_execution` and in training loops of your own. If `exclude_from_weight_decay` was
    called on the optimizer, call it on the new one too.

    Args:
        schedules: `{name: BucketedSchedule}`, all with the same horizon.
        optimizer: The Keras optimizer that they were learned with, a stock one or
            `keras_fds.optimizers.SGD`. Of a `HyperOptimizer` pass its `optimizer`. Its other
            arguments are kept.

    Returns:
        The code, a string.

    Raises:
        ValueError: When the optimizer is of another class, a name is not one of its numbers, or
            the horizons differ.

    Example:

    >>> schedules = {"learning_rate": keras_fds.BucketedSchedule([0.3, 0.1], horizon=10)}
    >>> code = keras_fds.export.python_snippet(schedules, keras_fds.optimizers.SGD())
    >>> "def make_optimizer(horizon=10):" in code
    True
    """
    _check(schedules, optimizer)
    arguments, numbers = _arguments(optimizer), {}
    for name, schedule in schedules.items():
        values = schedule.values.tolist()
        lines = schedule.interpolation == "linear"
        code = f"{'PiecewiseLinear' if lines else 'piecewise_constant'}({values}, horizon)"
        if schedule.num_buckets == 1:
            arguments[name] = repr(values[0])
        elif name == "learning_rate":
            arguments[name] = code
        else:
            numbers[name] = f"ScheduledNumber({code}, optimizer)"
    code = "\n".join(
        [
            f"def make_optimizer(horizon={_horizon(schedules)}):",
            '    """Over `horizon` training steps, which are batches."""',
            "    if horizon < 1:",
            '        raise ValueError(f"horizon must be at least 1. Received: {horizon!r}")',
            f"    optimizer = {_name(optimizer)}(",
            *(f"        {argument}={value}," for argument, value in arguments.items()),
            "    )",
            *(f"    optimizer.{number} = {value}" for number, value in numbers.items()),
            "    return optimizer",
        ]
    )
    header = _HEADER.format(name=_name(optimizer))
    return "\n\n\n".join([f"{header}\n\n{_imports(code)}", *_definitions(code), code]) + "\n"


def _check(schedules, optimizer):
    kind = type(optimizer)
    if kind not in (optimizers.SGD, getattr(keras.optimizers, kind.__name__, None)):
        raise ValueError(
            "`optimizer` must be the Keras optimizer that the schedules were learned with, a stock "
            "one or keras_fds.optimizers.SGD; of a HyperOptimizer pass its `optimizer`. "
            f"Received: optimizer={optimizer!r}"
        )
    config = optimizer.get_config()
    foreign = [name for name in schedules if name not in config]
    if foreign:
        raise ValueError(
            f"{_name(optimizer)} has no {', '.join(map(repr, foreign))}. Learned numbers of a "
            "model, its layers or its loss cannot be exported: train with the HyperOptimizer that "
            "learned them, or pass the schedules of the optimizer's own numbers only. "
            f"Received: schedules={schedules}"
        )
    if len({schedule.horizon for schedule in schedules.values()}) != 1:
        raise ValueError(
            "`schedules` must hold one or more schedules over the same horizon; "
            f"`schedule.stretched(horizon)` changes it. Received: schedules={schedules}"
        )


def _name(optimizer):
    kind = type(optimizer)
    return "SGD" if kind is optimizers.SGD else f"keras.optimizers.{kind.__name__}"


def _horizon(schedules):
    return next(iter(schedules.values())).horizon


def _arguments(optimizer):
    """The arguments that an optimizer was made with, `{name: code}`, without name and defaults."""
    default = type(optimizer)().get_config()
    return {
        name: f"keras.optimizers.schedules.deserialize({value!r})"
        if isinstance(value, dict)
        else repr(value)
        for name, value in optimizer.get_config().items()
        if name != "name" and value != default.get(name)
    }


def _imports(code):
    lines = ["import keras"]
    if "ScheduledNumber(" in code:
        lines.insert(0, "import operator\n")
    if "ScheduledNumber(" in code or "PiecewiseLinear(" in code:
        lines.append("import tensorflow as tf")
    if " SGD(" in code:
        lines.append("from keras import ops")
    return "\n".join(lines)


def _definitions(code):
    """The definitions that the code uses, as source."""
    used = [optimizers.SGD] if " SGD(" in code else []
    if "piecewise_constant(" in code:
        used.append(piecewise_constant)
    if "PiecewiseLinear(" in code:
        used.append(PiecewiseLinear)
    if "ScheduledNumber(" in code:
        used += [tensor_operator, ScheduledNumber]
    return [_cut(inspect.getsource(each)) for each in used]


def _cut(source):
    # Leaves out the arguments' documentation: its example imports keras_fds.
    source = re.sub(r'\n\n *Args:\n.*?(?=\n *""")', "", source, flags=re.DOTALL).strip()
    # Another name: when the code is run beside keras_fds, the original stays registered.
    return source.replace('serializable("keras_fds")', 'serializable("exported")')
