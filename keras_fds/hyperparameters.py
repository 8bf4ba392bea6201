"""Hyperparameters that are shared over the buckets of a horizon.

Source: Micaelli & Storkey, "Gradient-based Hyperparameter Optimization Over Long
Horizons", NeurIPS 2021, section 4 (hyperparameter sharing).
"""

import re

import keras
import numpy as np
import tensorflow as tf

# Upper ends of the ranges that exponential averages have; everything else is unbounded.
_LARGEST_DECAY = 0.999
_DECAYS = ("momentum", "beta_1", "beta_2", "rho", "ema_momentum", "adam_beta_1", "adam_beta_2")
_NAME = re.compile(r"[^\W\d]\w*|[\w*?\[\]-]+(\.[\w*?\[\]-]+)+")

# scale: coordinate of a value, value at a coordinate, derivative of the value by its coordinate
_SCALES = {
    "linear": (lambda x: x, lambda u: u, np.ones_like),
    "log": (np.log, tf.exp, lambda x: x),
    "logit": (lambda x: np.log(x) - np.log1p(-x), tf.sigmoid, lambda x: x * (1 - x)),
}


@keras.saving.register_keras_serializable("keras_fds")
class Hyperparameter:
    """A number that training computes with, learned as one value for each bucket of the horizon.

    Inner step `t` of a horizon of `T` steps falls in bucket `floor(num_buckets * t / T)`.

    Args:
        name: What the wrapped optimizer calls it (`"learning_rate"`, `"momentum"`,
            `"weight_decay"`, `"beta_1"`, …), or where the model or its loss keeps it:
            `"dense.kernel_regularizer.l2"` (attributes of the layer `dense`; `*` and `?` in the
            layer's name match several layers, which then share the value),
            `"dense.learning_rate_multiplier"` (a factor on the learning rate of a layer's
            weights), `"loss.label_smoothing"` (a number of the compiled loss;
            `"loss.<output>.label_smoothing"` with several outputs), `"loss_weights.<output>"`,
            or `"model.<attribute>"` (any number that a subclassed model uses in `call` or
            `compute_loss`). Numbers of the model and its loss are replaced in training steps
            only; validation uses those that the model was compiled with.
        num_buckets: Number of buckets the horizon is cut into. Defaults to `1`.
        initial: Start value: one number, or one number a bucket. Defaults to `0.0`.
        step_size: How far the first outer update moves a value that stands at an end of its range,
            in the hyperparameter's own unit. From elsewhere the default rule's steps are factors,
            of 2 at most, on the linear scale; on the others the first one is a factor of at most
            `exp(step_size)`, and they grow to 2. For `SignDescent`, the first step of every
            coordinate. Defaults to `0.1`.
        min_value: Smallest value allowed. Defaults to `0.0`.
        max_value: Largest value allowed. Defaults to `0.999` for `momentum`, `beta_1`,
            `beta_2`, `adam_beta_1`, `adam_beta_2`, `rho` and `ema_momentum`, to `1.0` for all
            others on the logit scale, and else to no bound.
        scale: The coordinate in which the outer rule moves a value λ and in which its
            hypergradient is given: `"linear"` (λ itself), `"log"` (log λ, for positive values)
            or `"logit"` (log λ/(1−λ), for values between 0 and 1). Only on the linear scale can
            a value start at 0. Defaults to `"linear"`.
        breadth: Part of the horizon, at most 1, over which the default outer rule puts slopes
            together where buckets are shorter: they are then learned as fast as one of that
            length, and smoothly. Defaults to `1 / 7`.

    Raises:
        ValueError: For fewer than one bucket, a start value out of range or of another
            length than `num_buckets`, a step size that is not positive, an empty range, a
            range or start value that the scale does not have, or a breadth outside (0, 1].

    Example:

    >>> rate = Hyperparameter("learning_rate", num_buckets=7, initial=0.0, step_size=0.1)
    >>> rate.bucket_lengths(10)
    array([2, 1, 2, 1, 2, 1, 1])
    """

    def __init__(
        self,
        name,
        num_buckets=1,
        initial=0.0,
        step_size=0.1,
        min_value=None,
        max_value=None,
        scale="linear",
        breadth=1 / 7,
    ):
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                "`name` must be the name of an optimizer's hyperparameter, such as "
                "'learning_rate', or of a number of the model, such as "
                f"'dense.kernel_regularizer.l2'. Received: name={name!r}"
            )
        if scale not in _SCALES:
            raise ValueError(
                f"`scale` of {name!r} must be 'linear', 'log' or 'logit'. Received: scale={scale!r}"
            )
        if not isinstance(num_buckets, (int, np.integer)) or num_buckets is True or num_buckets < 1:
            raise ValueError(
                f"`num_buckets` of {name!r} must be a whole number of at least 1. "
                f"Received: num_buckets={num_buckets!r}"
            )
        self.name, self.scale = name, scale
        largest = 1.0 if scale == "logit" else np.inf
        self._default_maximum = _LARGEST_DECAY if name in _DECAYS else largest
        self.num_buckets = int(num_buckets)
        self.step_size = self._number("step_size", step_size)
        self.min_value = self._number("min_value", 0.0 if min_value is None else min_value)
        self.max_value = self._number(
            "max_value", self._default_maximum if max_value is None else max_value
        )
        self.breadth = self._number("breadth", breadth)
        self.initial = initial
        if not 0 < self.breadth <= 1:
            raise ValueError(
                f"`breadth` of {name!r} must be a part of the horizon, above 0 and at most 1. "
                f"Received: breadth={breadth!r}"
            )
        if not self.step_size > 0 or not np.isfinite(self.step_size):
            raise ValueError(
                f"`step_size` of {name!r} must be positive and finite. "
                f"Received: step_size={step_size!r}"
            )
        if not self.min_value < self.max_value:
            raise ValueError(
                f"The range of {name!r} is empty. Received: min_value={self.min_value}, "
                f"max_value={self.max_value}"
            )
        self._check_initial()
        self._check_scale()

    def _number(self, argument, value):
        if not isinstance(value, (int, float, np.number)) or isinstance(value, bool):
            raise ValueError(
                f"`{argument}` of {self.name!r} must be a number. Received: {argument}={value!r}"
            )
        return float(value)

    def _check_initial(self):
        try:
            values = np.asarray(self.initial, dtype="float64")
        except (TypeError, ValueError):
            values = np.zeros((0, 0))
        if np.asarray(self.initial, object).dtype.kind in "US" or self.initial is None:
            values = np.zeros((0, 0))
        if values.ndim > 1 or (values.ndim == 1 and len(values) != self.num_buckets):
            raise ValueError(
                f"`initial` of {self.name!r} must be one number or {self.num_buckets} numbers, "
                f"one a bucket. Received: initial={self.initial!r}"
            )
        in_range = (values >= self.min_value) & (values <= self.max_value) & np.isfinite(values)
        if not np.all(in_range):
            raise ValueError(
                f"`initial` of {self.name!r} must lie between {self.min_value} and "
                f"{self.max_value}; change it, or min_value and max_value. "
                f"Received: initial={self.initial!r}"
            )
        self.initial = values.tolist()

    def _check_scale(self):
        with np.errstate(divide="ignore", invalid="ignore"):
            start = self.coordinates(np.asarray(self.initial))
            ends = self.coordinates(np.array([self.min_value, self.max_value]))
        if np.isnan(ends).any() or not np.isfinite(start).all():
            interval = {"log": "above 0", "logit": "between 0 and 1"}[self.scale]
            raise ValueError(
                f"Values of {self.name!r} on the scale {self.scale!r} lie {interval}, the start "
                "value strictly. Change `initial`, `min_value` or `max_value`, or use "
                f"scale='linear'. Received: initial={self.initial!r}, "
                f"min_value={self.min_value}, max_value={self.max_value}"
            )

    def coordinates(self, values):
        """The coordinates of values (float64 arrays) on the scale."""
        return _SCALES[self.scale][0](values)

    def values(self, coordinates):
        """The values at coordinates, float64 arrays or tensors; the inverse of `coordinates`."""
        return _SCALES[self.scale][1](coordinates)

    def derivatives(self, values):
        """dλ/du of values λ (float64 arrays) by their coordinates u."""
        return _SCALES[self.scale][2](values)

    @property
    def initial_values(self):
        """The start values, float64 of shape `[num_buckets]`."""
        return np.broadcast_to(np.asarray(self.initial, "float64"), [self.num_buckets]).copy()

    def bucket(self, inner_step, horizon):
        """The bucket of an inner step; whole numbers, arrays or integer tensors."""
        return self.num_buckets * inner_step // horizon

    def opening_steps(self, horizon):
        """The first inner step of every bucket, int64 of shape `[num_buckets]`."""
        return -(-np.arange(self.num_buckets, dtype="int64") * int(horizon) // self.num_buckets)

    def bucket_lengths(self, horizon):
        """The number of inner steps in every bucket, int64 of shape `[num_buckets]`."""
        return np.diff(np.append(self.opening_steps(horizon), int(horizon)))

    def get_config(self):
        return {
            "name": self.name,
            "num_buckets": self.num_buckets,
            "initial": self.initial,
            "step_size": self.step_size,
            "min_value": self.min_value,
            # The default may be infinite, which JSON has no word for.
            "max_value": None if self.max_value == self._default_maximum else self.max_value,
            "scale": self.scale,
            "breadth": self.breadth,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __repr__(self):
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"Hyperparameter({arguments})"
