"""The problems that engines are measured on: a network with weights, batches and schedules."""

import dataclasses
import re

import numpy as np
import sklearn.datasets

IMAGES = {
    "digits_cnn": (8, 8, 1),
    "mlp": (28, 28, 1),
    "lenet": (28, 28, 1),
    "wrn_10_1": (32, 32, 3),
    "wrn_16_1": (32, 32, 3),
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """Images and labels, and the paper's SGD without clipping.

    The images of `digits_cnn` are handwritten digits, those of the other networks random numbers.

    Attributes:
        network: A key of `IMAGES`.
        batch: Number of examples in a batch.
        horizon: Number of inner steps, each with a batch of its own.
        schedules: `{name: values}` of learning_rate, momentum and weight_decay, one value per
            bucket.
    """

    network: str
    batch: int
    horizon: int
    schedules: dict

    @property
    def num_tangents(self):
        return sum(len(values) for values in self.schedules.values())

    def data(self):
        """`(x, y, x_validation, y_validation)`: `[horizon, batch, ...]` and one batch."""
        rng = np.random.default_rng(0)
        shape = (self.horizon + 1, self.batch)
        if self.network == "digits_cnn":
            digits = sklearn.datasets.load_digits()
            drawn = rng.integers(0, len(digits.images), shape)
            x, y = digits.images[drawn][..., np.newaxis] / 16, digits.target[drawn]
            return x[:-1], y[:-1], x[-1], y[-1]
        x = rng.normal(size=(*shape, *IMAGES[self.network]))
        y = rng.integers(0, 10, shape)
        return x[:-1], y[:-1], x[-1], y[-1]

    def bucket_at(self, name, step):
        return len(self.schedules[name]) * step // self.horizon

    def values_at(self, step):
        """Learning rate, momentum and weight decay at a step."""
        return tuple(self.schedules[name][self.bucket_at(name, step)] for name in SCHEDULES)

    def one_hot_at(self, step):
        """`[3, num_tangents]`: the bucket that a step falls in, for each schedule."""
        rows, first = np.zeros((len(SCHEDULES), self.num_tangents)), 0
        for row, name in zip(rows, SCHEDULES):
            row[first + self.bucket_at(name, step)] = 1.0
            first += len(self.schedules[name])
        return rows

    def means(self, sums):
        """Hypergradients `{name: [num_buckets]}` from sums over the steps, `[num_tangents]`."""
        steps = sum(self.one_hot_at(step).sum(axis=0) for step in range(self.horizon))
        ends = np.cumsum([len(self.schedules[name]) for name in SCHEDULES])
        return dict(zip(SCHEDULES, np.split(np.asarray(sums, "float64") / steps, ends[:-1])))


SCHEDULES = ("learning_rate", "momentum", "weight_decay")


def problem(network, batch, horizon, num_rate_buckets=7):
    """A problem with that many learning rates, one momentum and one weight decay."""
    rates = 0.01 * (1 + 0.1 * np.cos(np.arange(num_rate_buckets)))
    schedules = {"learning_rate": rates, "momentum": np.array([0.9])}
    return Problem(network, batch, horizon, {**schedules, "weight_decay": np.array([5e-4])})


def keras_model(problem):
    """The network with its initial weights, the same in every precision."""
    from trainers import networks

    shape = IMAGES[problem.network]
    if problem.network.startswith("wrn"):
        depth, width = map(int, problem.network.split("_")[1:])
        model = networks.wide_resnet(shape, 10, depth=depth, width=width)
    else:
        model = networks.build(problem.network, shape, 10)
    rng = np.random.default_rng(1)
    for kernel in (w for w in model.trainable_weights if len(w.shape) > 1):
        values = rng.normal(size=kernel.shape) / np.prod(kernel.shape[:-1]) ** 0.5
        kernel.assign(values.astype("float32"))
    return model


def weights(problem):
    """`{"Conv2D": [[kernel, bias], ...], "BatchNormalization": [[gamma, beta], ...], ...}`.

    Trainable weights, layers of a kind in the order in which they were made.
    """
    layers = [layer for layer in keras_model(problem).layers if layer.trainable_weights]
    made = sorted(layers, key=lambda layer: int((re.findall(r"_(\d+)$", layer.name) or [0])[0]))
    kinds = {}
    for layer in made:
        arrays = [variable.numpy() for variable in layer.trainable_weights]
        kinds.setdefault(type(layer).__name__, []).append(arrays)
    return kinds
