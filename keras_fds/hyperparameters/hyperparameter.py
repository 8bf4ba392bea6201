"""Hyperparameters: names, ranges and scales of what is learned, and how steps share its values.

Source: Micaelli & Storkey, "Gradient-based Hyperparameter Optimization Over Long
Horizons", NeurIPS 2021, section 4 (hyperparameter sharing).
"""

import re
import reprlib
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_fds.functional import EXAMPLE_WEIGHTS, is_multiplier
from keras_fds.hyperparameters.scales import (
    ABOVE_ZERO,
    DECAYS,
    LARGEST_DECAY,
    SCALES,
    SEARCHED,
    SEARCHED_ELSEWHERE,
)
from keras_fds.numbers import number
from keras_fds.schedules import INTERPOLATIONS, BucketedSchedule, Interpolation, shares

_NAME = re.compile(r"[^\W\d]\w*|[\w*?\[\]-]+(\.[\w*?\[\]-]+)+")


@keras.saving.register_keras_serializable("keras_fds")
class Hyperparameter:
    """A number that training computes with, learned as a few values that share the horizon.

    Inner step `t` of a horizon of `T` steps falls in bucket `floor(num_buckets * t / T)`, and has
    its value; or it lies on a straight line between the two knots beside it. In place of a number
    it may be a *vector*: one number for every class, group, example, layer or element of an array.
    The values then have the shape `[num_buckets, *shape]`, and the outer rules move them by their
    hypergradients.

    Args:
        name: Its name in the wrapped optimizer (`"learning_rate"`, `"momentum"`,
            `"weight_decay"`, `"beta_1"`, …), or where the model or its loss keeps it:
            `"dense.kernel_regularizer.l2"` (attributes of the layer `dense`; `*` and `?` in the
            layer's name match several layers, which then share the value),
            `"dense.learning_rate_multiplier"` (a factor on the learning rate of a layer's
            weights), `"loss.label_smoothing"` (a number of the compiled loss;
            `"loss.<output>.label_smoothing"` with several outputs), `"loss_weights.<output>"`,
            or `"model.<attribute>"` (any number that a subclassed model uses in `call` or
            `compute_loss`). Where an attribute is an array, every element is learned.
            `"class_weight"` is a vector of one factor on the training loss for every class,
            `"sample_weight"` of one for every group of examples, or every example. Numbers of the
            model and its loss are replaced only in training steps; validation uses those that the
            model was compiled with, and has no learned weights.
        num_buckets: Number of buckets of the horizon. Defaults to `1`.
        initial: Start value: one number, or one number per bucket; of a vector whose `shape` is
            given also one number per element, or per bucket and element. Defaults to `None`: 0, or,
            where 0 is out of the range or off the scale, the middle of what is searched; vectors
            start from what the model holds, and weights and factors from 1.
        step_size: How far `SignDescent` moves every coordinate at first, and the unit in which
            `Descent` and `fit_online` move it. The default rule has no step sizes for numbers.
            Defaults to `0.1`.
        min_value: Smallest value allowed. Defaults to `0.0`; where the name says that values must
            be above 0 (`"epsilon"`, `"clipnorm"`, …) to the lower end of what is searched.
        max_value: Largest value allowed. Defaults to `0.999` for `momentum`, `beta_1`,
            `beta_2`, `adam_beta_1`, `adam_beta_2`, `rho` and `ema_momentum`, to `1.0` for all
            others on the scales `"logit"` and `"complement"`, and otherwise to no bound. Where
            an end of the range is not given, the default rule searches between ends of its own,
            see `searched`.
        scale: The coordinate in which the hypergradient of a value λ is given, and in which
            `SignDescent` moves it: `"linear"` (λ itself), `"log"` (log λ, for positive values),
            `"logit"` (log λ/(1−λ), for values between 0 and 1) or `"complement"` (−log(1−λ), for
            values below 1). A value can start at 0 on the scales `"linear"` and `"complement"`.
            Defaults to `"linear"`.
        interpolation: `"constant"`, a value for each bucket, or `"linear"`: the values are knots at
            equal distances, from the first step to the end of the horizon, with straight lines
            between them. Defaults to `"constant"`.
        smoothing_window, breadth: Deprecated; they have no effect.
        groups: Of `"sample_weight"`: the group of every example of `x`, whole numbers from 0; or,
            for datasets, how many groups there are. (A batch of a dataset has the group of each
            example as its fourth part.) Defaults to `None`: every example of `x` is its own group.
        each: Whether every layer, or loss, that a name with `*` or `?` matches has a value of its
            own. Defaults to `False`: they share one.
        shape: The shape of a vector. Defaults to `None`: it is known once `fit` has the model and
            the data.

    Raises:
        ValueError: For fewer than one bucket, a start value out of range or of another
            length than `num_buckets`, a step size that is not positive, an empty range, a range
            or start value outside of the scale, an unknown interpolation, or `groups` or `each`
            where they have no meaning.

    Example:

    >>> rate = Hyperparameter("learning_rate", num_buckets=7, initial=0.0, step_size=0.1)
    >>> rate.bucket_lengths(10)
    array([2, 1, 2, 1, 2, 1, 1])
    """

    def __init__(
        self,
        name: str,
        num_buckets: int = 1,
        initial: ArrayLike | None = None,
        step_size: float = 0.1,
        min_value: float | None = None,
        max_value: float | None = None,
        scale: Literal["linear", "log", "logit", "complement"] = "linear",
        smoothing_window: float | None = None,
        interpolation: Interpolation = "constant",
        breadth: float | None = None,
        groups: ArrayLike | None = None,
        each: bool = False,
        shape: Sequence[int] | None = None,
    ) -> None:
        if smoothing_window is not None or breadth is not None:
            warnings.warn(
                "Hyperparameter needs no `smoothing_window` (or `breadth`): the default outer rule "
                "knows that neighbouring values act together.",
                DeprecationWarning,
                stacklevel=2,
            )
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                "`name` must be the name of an optimizer's hyperparameter, such as "
                "'learning_rate', or of a number of the model, such as "
                f"'dense.kernel_regularizer.l2'. Received: name={name!r}"
            )
        if scale not in SCALES:
            raise ValueError(
                f"`scale` of {name!r} must be 'linear', 'log', 'logit' or 'complement'. "
                f"Received: scale={scale!r}"
            )
        if interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"`interpolation` of {name!r} must be 'constant' or 'linear'. "
                f"Received: interpolation={interpolation!r}"
            )
        self.name, self.scale, self.initial = name, scale, initial
        self.interpolation, self.each = interpolation, bool(each)
        if each and "." not in name:
            raise ValueError(
                "`each` gives every layer that a name such as '*.kernel_regularizer.l2' matches a "
                f"value of its own. {name!r} belongs to no layer: leave `each` out."
            )
        self.groups = _checked_groups(name, groups)
        self._shape = _checked_shape(name, shape)
        if groups is not None:
            self._settle_shape((_number_of_groups(self.groups),))
        self._has_start = initial is not None
        self._held: np.ndarray | None = None  # What the model holds, of a vector.
        self.num_buckets = number(f"`num_buckets` of {name!r}", num_buckets, least=1, whole=True)
        self.step_size = number(f"`step_size` of {name!r}", step_size, above=0)
        largest = 1.0 if scale in ("logit", "complement") else np.inf
        self._default_maximum = LARGEST_DECAY if name in DECAYS else largest
        self.min_value = 0.0 if min_value is None else self._end("min_value", min_value)
        if min_value is None and initial is None and self._last_name in ABOVE_ZERO:
            self.min_value = SEARCHED[self._last_name][1]
        self.max_value = (
            self._default_maximum if max_value is None else self._end("max_value", max_value)
        )
        if not self.min_value < self.max_value:
            raise ValueError(
                f"The range of {name!r} is empty. Received: min_value={self.min_value}, "
                f"max_value={self.max_value}"
            )
        if initial is None and not self.is_vector:
            self.initial = 0.0
            starts_at_zero = scale in ("linear", "complement")
            if not (starts_at_zero and self.min_value <= 0 <= self.max_value):
                _, low, high = self.searched
                middle = self.from_searched(np.array((low + high) / 2))
                self.initial = float(np.clip(middle, self.min_value, self.max_value))
        self._check_initial()
        self._check_scale()

    # ------------------------------------------------------------------------------ vectors
    @property
    def is_vector(self) -> bool:
        """Whether it has one value for every class, group, example, layer or element."""
        return self.name in EXAMPLE_WEIGHTS or self.each or self._shape not in (None, ())

    @property
    def is_settled(self) -> bool:
        """Whether the shape of its values is known; that of a vector may depend on the data."""
        return self._shape is not None or not self.is_vector

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its value at a step: `()` of a number, `(0,)` before it is known."""
        if self._shape is not None:
            return self._shape
        return (0,) if self.is_vector else ()

    @property
    def size(self) -> int:
        """How many values it has at a step."""
        return int(np.prod(self.shape))

    def may_become(self, shape: Sequence[int]) -> bool:
        """Whether it may turn out to be a vector of a shape, once model and data are there."""
        of_model = self.is_vector or "." in self.name
        return of_model and self._shape is None and shape != ()

    def settle(self, held: ArrayLike) -> None:
        """Takes over the shape of what the model holds, a float64 array, and starts from it.

        Raises:
            ValueError: When the shape is another one than is known already, or the start values
                are out of range.
        """
        self._settle_shape(np.shape(held))
        if not self._has_start and self.is_vector:
            self.initial, self._held = None, np.array(held, "float64")
        self._check_initial()
        self._check_scale()

    def _settle_shape(self, shape):
        if self._shape is not None and self._shape != tuple(shape):
            raise ValueError(
                f"{self.name!r} is learned with {_told(self._shape)}, but model and data have "
                f"{_told(shape)}. Pass the same model and data, or compile the model with a new "
                "HyperOptimizer."
            )
        self._shape = tuple(shape)

    @property
    def _last_name(self):
        return self.name.rsplit(".", 1)[-1]

    def _end(self, argument, value):
        """An end of the range, which may be infinite."""
        if isinstance(value, (float, np.floating)) and np.isinf(value):
            return float(value)
        return number(f"`{argument}` of {self.name!r}", value)

    def _check_initial(self):
        if self.initial is None and not self.initial_values.size:
            return  # Not known yet.
        try:
            values = np.asarray(self.initial_values if self.initial is None else self.initial)
            is_numeric = values.dtype.kind in "biuf"
            values = values.astype("float64")
        except (TypeError, ValueError):
            is_numeric = False
        shapes = [(), (self.num_buckets,), self.shape, (self.num_buckets, *self.shape)]
        if not is_numeric or values.shape not in shapes:
            of_vector = ""
            if self.is_vector and not self.size:
                of_vector = ", or arrays of `shape`, which must be given then"
            elif self.is_vector:
                of_vector = f", or, with `shape`, {_told(self.shape)} for all buckets or for each"
            raise ValueError(
                f"`initial` of {self.name!r} must be one number or {self.num_buckets} numbers, "
                f"one per bucket{of_vector}. Received: {self._told_start(self.initial)}"
            )
        in_range = (values >= self.min_value) & (values <= self.max_value) & np.isfinite(values)
        if not np.all(in_range):
            start = "The start value" if self.initial is None else "`initial`"
            raise ValueError(
                f"{start} of {self.name!r} must lie between {self.min_value} and "
                f"{self.max_value}; change `initial`, or min_value and max_value. "
                f"Received: {self._told_start(values)}"
            )
        if self.initial is not None:
            self.initial = values.tolist()

    def _told_start(self, values):
        """Start values in short, and where they come from."""
        if self.initial is not None:
            return f"initial={reprlib.repr(self.initial)}"
        return f"{reprlib.repr(np.unique(values).tolist())}, as the model holds"

    def _check_scale(self):
        with np.errstate(divide="ignore", invalid="ignore"):
            start = self.coordinates(self.initial_values)
            ends = self.coordinates(np.array([self.min_value, self.max_value]))
        if np.isnan(ends).any() or not np.isfinite(start).all():
            intervals = {"log": "above 0", "logit": "between 0 and 1", "complement": "below 1"}
            interval = intervals[self.scale]
            raise ValueError(
                f"Values of {self.name!r} on the scale {self.scale!r} lie {interval}, the start "
                "value strictly. Change `initial`, `min_value` or `max_value`, or use "
                f"scale='linear'. Received: {self._told_start(self.initial_values)}, "
                f"min_value={self.min_value}, max_value={self.max_value}"
            )

    def check_schedule(self, schedule: Any) -> None:
        """Raises a `ValueError` unless it is a `BucketedSchedule` that could be learned."""
        shape, form = (self.num_buckets, *self.shape), (self.num_buckets, self.interpolation)
        if not isinstance(schedule, BucketedSchedule) or (
            schedule.values.shape,
            schedule.interpolation,
        ) != (shape, self.interpolation):
            of_vector = f" of {_told(self.shape)} each" if self.is_vector else ""
            raise ValueError(
                f"`schedules` must hold a BucketedSchedule of {form[0]} value(s){of_vector} for "
                f"{self.name!r}, with interpolation={form[1]!r}. Received: {schedule!r}"
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            on_scale = np.isfinite(self.coordinates(schedule.values)).all()
        ends = np.array([self.min_value, self.max_value])
        least, most = ends + [-1e-6, 1e-6] * np.maximum(1.0, np.abs(ends))  # They may be rounded.
        in_range = (schedule.values >= least) & (schedule.values <= most)
        if not (on_scale and in_range.all()):
            raise ValueError(
                f"A schedule of {self.name!r} must lie between {self.min_value} and "
                f"{self.max_value}, on the scale {self.scale!r}; change it, or the Hyperparameter. "
                f"Received: {schedule!r}"
            )

    def divided(self, num_buckets: int) -> "Hyperparameter":
        """The same with another number of buckets, all of which start with its first value."""
        config = {"num_buckets": num_buckets, "initial": float(self.initial_values[0])}
        return Hyperparameter(**{**self.get_config(), **config, "interpolation": "constant"})

    def coordinates(self, values: Any) -> Any:
        """The coordinates of values (float64 arrays) on the scale."""
        return SCALES[self.scale][0](values)

    def values(self, coordinates: Any) -> Any:
        """The values at coordinates, float64 arrays or tensors; the inverse of `coordinates`."""
        return SCALES[self.scale][1](coordinates)

    def derivatives(self, values: Any) -> Any:
        """dλ/du of values λ (float64 arrays) by their coordinates u."""
        return SCALES[self.scale][2](values)

    # --------------------------------------------------------------------------- searching
    @property
    def searched(self) -> tuple[str, float, float]:
        """`(scale, low, high)`: where the default outer rule looks, the ends on that scale.

        A scale and the ends of the range that were given count. What is not given goes by the
        last part of the name. Where that is a logarithm, it reaches from a hundredth of the start
        value to a hundred times it at least.
        """
        scale, low, high = SEARCHED.get(self._last_name, SEARCHED_ELSEWHERE)
        reach = 100.0 if scale == "log" else 1.0  # Other ranges are whole already.
        if self.scale != "linear":
            scale = self.scale
        elif self.min_value < 0:
            scale = "linear"
        start = self.initial_values[self.initial_values > 0]
        if start.size:
            low = min(low, start.min() / reach)
            high = max(high, min(reach * start.max(), self._default_maximum))
        if self.min_value != 0:
            low = self.min_value
        if self.max_value < self._default_maximum:
            high = self.max_value
        if scale == "logit":
            low, high = low if low > 0 else min(1e-4, 0.01 * high), min(high, 1 - 1e-4)
        elif scale == "complement":
            high = min(high, 1 - 1e-4)
        elif scale == "log" and low <= 0:
            low = 1e-4 * high
        if not low < high:  # Only one end was given, beyond the other one.
            if self.min_value == low:
                high = min(100 * low if low > 0 else low + 1.0, self.max_value)
            else:
                low = min(low, high * 1e-4)
        low, high = max(low, min(-1e6, 100 * high)), min(high, max(1e6, 100 * low))
        coordinate = SCALES[scale][0]
        return scale, float(coordinate(low)), float(coordinate(high))

    def to_searched(self, values: Any) -> Any:
        """Values (float64 arrays) on the scale on which they are searched."""
        return SCALES[self.searched[0]][0](values)

    def from_searched(self, coordinates: Any) -> np.ndarray:
        """The inverse of `to_searched`."""
        return np.array(SCALES[self.searched[0]][1](coordinates))

    def derivatives_by_searched(self, values: Any) -> Any:
        """dλ/dφ of values λ by their coordinates φ on the scale on which they are searched."""
        return SCALES[self.searched[0]][2](values)

    @property
    def initial_values(self) -> np.ndarray:
        """The start values, float64 of shape `[num_buckets, *shape]`."""
        start = self.initial
        if start is None:
            ones = self.name in EXAMPLE_WEIGHTS or is_multiplier(self.name)
            start = self._held if self._held is not None and not ones else float(ones)
        start = np.asarray(start, "float64")
        if start.shape == (self.num_buckets,) and start.shape != self.shape:
            start = start.reshape(-1, *[1] * len(self.shape))
        return np.broadcast_to(start, [self.num_buckets, *self.shape]).copy()

    def shares(self, inner_step: Any, horizon: Any) -> tuple[Any, Any, Any]:
        """The row of the sharing matrix at inner steps, see `keras_fds.schedules.shares`."""
        return shares(self.interpolation, self.num_buckets, inner_step, horizon)

    def opening_steps(self, horizon: int) -> np.ndarray:
        """The first inner step that shares each value, int64 of shape `[num_buckets]`."""
        values, horizon = np.arange(self.num_buckets, dtype="int64"), int(horizon)
        if self.interpolation == "constant":
            return -(-values * horizon // self.num_buckets)
        # A knot is shared after the one before it.
        return np.where(values == 0, 0, (values - 1) * horizon // max(1, self.num_buckets - 1) + 1)

    def bucket_lengths(self, horizon: int) -> np.ndarray:
        """How many inner steps share each value, `[num_buckets]`: sums over the sharing matrix.

        Whole numbers for buckets; between knots, steps count in parts.
        """
        if self.interpolation == "constant":
            return np.diff(np.append(self.opening_steps(horizon), int(horizon)))
        return self.sums(np.ones(int(horizon)))

    def sums(self, of_steps: np.ndarray) -> np.ndarray:
        """The transposed sharing matrix times numbers of single steps, `[num_buckets]`."""
        lower, upper, fraction = self.shares(np.arange(len(of_steps)), len(of_steps))
        if fraction is None:
            return np.bincount(lower, of_steps, self.num_buckets)
        of_lower = np.bincount(lower, (1 - fraction) * of_steps, self.num_buckets)
        return of_lower + np.bincount(upper, fraction * of_steps, self.num_buckets)

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "num_buckets": self.num_buckets,
            "initial": self.initial,
            "step_size": self.step_size,
            "min_value": self.min_value,
            # The default may be infinite, which JSON cannot hold.
            "max_value": None if self.max_value == self._default_maximum else self.max_value,
            "scale": self.scale,
            "interpolation": self.interpolation,
            **self._config_of_vector(),
        }

    def _config_of_vector(self):
        """What only vectors have. Which example is in which group belongs to the data."""
        config = {} if self.groups is None else {"groups": _number_of_groups(self.groups)}
        if self.each:
            config["each"] = True
        if self._shape:
            config["shape"] = list(self._shape)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Hyperparameter":
        older = ("smoothing_window", "breadth")
        return cls(**{name: value for name, value in config.items() if name not in older})

    def __repr__(self):
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"Hyperparameter({arguments})"


def _checked_groups(name, groups):
    """The group of every example, or the number of groups."""
    if groups is None:
        return None
    if name != "sample_weight":
        raise ValueError(f"`groups` are for 'sample_weight' only. Received: it for {name!r}")
    if np.ndim(groups) == 0:
        return number("`groups` of 'sample_weight'", groups, least=1, whole=True)
    groups = np.asarray(groups)
    if groups.ndim != 1 or groups.dtype.kind not in "iu" or not groups.size or groups.min() < 0:
        raise ValueError(
            "`groups` must be the group of every example, whole numbers from 0, or the number of "
            "groups; numpy.unique(names, return_inverse=True)[1] makes numbers of names. "
            f"Received: an array of shape {groups.shape} and dtype {groups.dtype}"
        )
    if groups.max() >= groups.size:
        raise ValueError(
            "`groups` must number the groups without gaps from 0, so there are no more than "
            "examples; numpy.unique(groups, return_inverse=True)[1] does. "
            f"Received: {groups.size} examples, and the group {groups.max()}"
        )
    return groups.astype("int64")


def _number_of_groups(groups):
    return groups if isinstance(groups, int) else int(groups.max()) + 1


def _checked_shape(name, shape):
    if shape is None:
        return None
    lengths = [shape] if np.ndim(shape) == 0 else list(shape)
    return tuple(number(f"`shape` of {name!r}", n, least=1, whole=True) for n in lengths)


def _told(shape):
    """A shape in words."""
    if not shape:
        return "one value"
    return f"{' x '.join(map(str, shape))} value{'s' if np.prod(shape) > 1 else ''}"
