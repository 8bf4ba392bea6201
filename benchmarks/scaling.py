"""What several devices would bring: `python -m benchmarks.scaling`.

    python -m benchmarks.scaling --milliseconds=55 --forward=20 --reverse=4 --parameters=175e3

No measurement of several devices: a step time measured on one of them, and a model of what they
move. Data parallelism gives every device a batch of its own and sums what depends on it by a ring
all-reduce, which moves 2 (R-1)/R times the bytes through every link, in 2 (R-1) messages. Nothing
overlaps with it, so real efficiencies may be higher. Tangent parallelism gives every device the
whole batch and a part of the tangents; it moves nothing.

What is summed in a step, in copies of the gradient: it alone in plain training; in forward mode
its K tangents too; in reverse mode it is summed on the way there and again on the way back, with
the product of the Hessian and the cotangent.
"""

import dataclasses

from absl import app, flags

_MILLISECONDS = flags.DEFINE_float("milliseconds", 55.0, "A plain step on one device.")
_FORWARD = flags.DEFINE_float("forward", 20.5, "A step in forward mode, in plain steps.")
_REVERSE = flags.DEFINE_float("reverse", 4.0, "The same in reverse mode.")
_PARAMETERS = flags.DEFINE_float("parameters", 175e3, "Weights of the network.")
_TANGENTS = flags.DEFINE_integer("tangents", 9, "Number of tangents.", 1)
_GIGABYTES = flags.DEFINE_float("gigabytes", 3.0, "What a link moves in a second.")
_MICROSECONDS = flags.DEFINE_float("microseconds", 20.0, "Latency of a message.")

DEVICES = (8, 64)
BYTES = 4  # Of a float32.


@dataclasses.dataclass(frozen=True)
class Link:
    """The connection of a device to the next one: bytes in a second, and seconds a message."""

    bandwidth: float
    latency: float

    def all_reduce(self, size, devices):
        """Seconds of a ring all-reduce of so many bytes.

        Example:

        >>> Link(bandwidth=1e9, latency=0.0).all_reduce(1e9, devices=2)
        1.0
        """
        hops = 2 * (devices - 1)
        return hops / devices * size / self.bandwidth + hops * self.latency


def gradients_summed(mode, tangents):
    """Copies of the gradient that are summed in a step."""
    return {"plain": 1, "forward": 1 + tangents, "reverse": 3}[mode]


def data_parallel(seconds, mode, parameters, tangents, link, devices, same_batch=False):
    """The efficiency of data parallelism, from 0 to 1.

    Args:
        seconds: Of a step of the mode on one device.
        mode: `"plain"`, `"forward"` or `"reverse"`.
        parameters: Number of weights.
        tangents: Number of tangents, of forward mode.
        link: A `Link`.
        devices: Number of devices.
        same_batch: Whether the devices share a batch of the size of one device's, so that each
            computes a part of the time. Defaults to `False`: every device has as many examples.
    """
    size = BYTES * parameters * gradients_summed(mode, tangents)
    computing = seconds / devices if same_batch else seconds
    return computing / (computing + link.all_reduce(size, devices))


def tangent_parallel(cost_of_forward, tangents, devices):
    """The efficiency of tangent parallelism; a step costs that many plain steps on one device.

    Example:

    >>> tangent_parallel(cost_of_forward=11.0, tangents=10, devices=2)
    0.916...
    """
    of_one = (cost_of_forward - 1) / tangents
    most = -(-tangents // devices)
    return cost_of_forward / devices / (1 + of_one * most)


def table(seconds, forward, reverse, parameters, tangents, link):
    """A table in Markdown, one row for each way, one column for each number of devices."""
    lines = ["| | " + " | ".join(f"{n} devices" for n in DEVICES) + " |", "|---|---|---|"]
    costs = {"plain": 1.0, "forward": forward, "reverse": reverse}
    for same_batch in (False, True):
        for mode, cost in costs.items():
            cells = [
                data_parallel(cost * seconds, mode, parameters, tangents, link, n, same_batch)
                for n in DEVICES
            ]
            batch = "one batch shared" if same_batch else "a batch each"
            lines.append(_row(f"{mode}, {batch}", cells))
    cells = [tangent_parallel(forward, tangents, n) for n in DEVICES]
    lines.append(_row("forward, tangents divided", cells))
    return "\n".join(lines)


def _row(name, cells):
    return f"| {name} | " + " | ".join(f"{100 * cell:.0f}%" for cell in cells) + " |"


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    link = Link(1e9 * _GIGABYTES.value, 1e-6 * _MICROSECONDS.value)
    seconds = 1e-3 * _MILLISECONDS.value
    numbers = _FORWARD.value, _REVERSE.value, _PARAMETERS.value, _TANGENTS.value
    print(table(seconds, *numbers, link))


if __name__ == "__main__":
    app.run(main)
