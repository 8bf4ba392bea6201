"""Hyperparameters that are shared over the buckets of a horizon.

Source: Micaelli & Storkey, "Gradient-based Hyperparameter Optimization Over Long
Horizons", NeurIPS 2021, section 4 (hyperparameter sharing).
"""

import keras
import numpy as np

# Upper ends of the ranges that exponential averages have; everything else is unbounded.
_LARGEST_DECAY = 0.999
_DECAYS = ("momentum", "beta_1", "beta_2", "rho", "ema_momentum")


@keras.saving.register_keras_serializable("keras_fds")
class Hyperparameter:
    """A scalar of an optimizer, learned as one value for each bucket of the horizon.

    Inner step `t` of a horizon of `T` steps falls in bucket `floor(num_buckets * t / T)`.

    Args:
        name: What the wrapped optimizer calls it: `"learning_rate"`, `"momentum"`,
            `"weight_decay"`, `"beta_1"`, …
        num_buckets: Number of buckets the horizon is cut into. Defaults to `1`.
        initial: Start value: one number, or one number a bucket. Defaults to `0.0`.
        step_size: How far the first outer update moves a value, in the hyperparameter's own
            unit. Defaults to `0.1`.
        min_value: Smallest value allowed. Defaults to `0.0`.
        max_value: Largest value allowed. Defaults to `0.999` for `momentum`, `beta_1`,
            `beta_2`, `rho` and `ema_momentum`, and to no bound for all others.

    Raises:
        ValueError: For fewer than one bucket, a start value out of range or of another
            length than `num_buckets`, a step size that is not positive, or an empty range.

    Example:

    >>> rate = Hyperparameter("learning_rate", num_buckets=7, initial=0.0, step_size=0.1)
    >>> rate.bucket_lengths(10)
    array([2, 1, 2, 1, 2, 1, 1])
    """

    def __init__(
        self, name, num_buckets=1, initial=0.0, step_size=0.1, min_value=None, max_value=None
    ):
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(
                "`name` must be the name of an optimizer's hyperparameter, such as "
                f"'learning_rate'. Received: name={name!r}"
            )
        if not isinstance(num_buckets, (int, np.integer)) or num_buckets is True or num_buckets < 1:
            raise ValueError(
                f"`num_buckets` of {name!r} must be a whole number of at least 1. "
                f"Received: num_buckets={num_buckets!r}"
            )
        self.name = name
        self._default_maximum = _LARGEST_DECAY if name in _DECAYS else np.inf
        self.num_buckets = int(num_buckets)
        self.step_size = self._number("step_size", step_size)
        self.min_value = self._number("min_value", 0.0 if min_value is None else min_value)
        self.max_value = self._number(
            "max_value", self._default_maximum if max_value is None else max_value
        )
        self.initial = initial
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
        if not np.all((values >= self.min_value) & (values <= self.max_value)):
            raise ValueError(
                f"`initial` of {self.name!r} must lie between {self.min_value} and "
                f"{self.max_value}; change it, or min_value and max_value. "
                f"Received: initial={self.initial!r}"
            )
        self.initial = values.tolist()

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
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __repr__(self):
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"Hyperparameter({arguments})"
