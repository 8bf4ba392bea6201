"""Outer update rules: what an outer step measured in, new bucket values out.

A rule sees all buckets of all hyperparameters as one vector and keeps its state in a
dictionary of float64 arrays, so that whoever owns the state can save it.
"""

from typing import NamedTuple

import keras
import numpy as np


class Measurement(NamedTuple):
    """What an outer step measured at the present values.

    Args:
        hypergradients: By coordinates, means over the steps of each bucket, float64
            `[total_buckets]`.
        loss: Validation loss; not finite when the inner loop broke down.
        lengths: Inner steps in each bucket, `[total_buckets]`.
        horizon: Inner steps in all.
        loss_error: Standard error of the validation loss, `0.0` where it is not known.

    Example:

    >>> Measurement(np.array([-0.2, 0.1]), loss=0.5, lengths=np.array([50, 50]), horizon=100)
    """

    hypergradients: np.ndarray
    loss: float
    lengths: np.ndarray
    horizon: int
    loss_error: float = 0.0


class Ranges(NamedTuple):
    """Where coordinates may lie, arrays of `[total_buckets]`.

    Args:
        minimum, maximum: The ends, float64, which may be infinite.
        linear: Whether a coordinate is the value itself, bool.
        groups: The number of the hyperparameter that the bucket belongs to.

    Example:

    >>> Ranges(np.zeros(2), np.full(2, np.inf), np.full(2, True), groups=np.zeros(2))
    """

    minimum: np.ndarray
    maximum: np.ndarray
    linear: np.ndarray
    groups: np.ndarray


class _Rule:
    """What the rules share."""

    # The search has converged when every step is below this fraction of its value.
    converged_fraction = 0.05

    def converged(self, state, ranges):
        """Whether every step size is below 5% of its value.

        A value that its last sign holds at an end of its range counts as settled.
        """
        values, signs = state["values"], state["signs"]
        small = state["step_sizes"] < self.converged_fraction * np.abs(values)
        held = (values <= ranges.minimum) & (signs > 0)
        held |= (values >= ranges.maximum) & (signs < 0)
        return bool(np.all(small | held))

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable("keras_fds")
class SignDescent(_Rule):
    """The paper's rule: steps along the sign of the hypergradient, halved when the sign flips.

    For bucket k with value λ_k, step size δ_k and hypergradient h_k:

        δ_k ← shrink · δ_k   if sign(h_k) differs from the previous sign (both not zero)
        λ_k ← clip(λ_k − sign(h_k) δ_k, minimum, maximum)

    NaN counts as sign 0. Nothing but the range holds it back: it can overshoot and diverge.

    Args:
        shrink: Factor on a step size when its sign flips. Defaults to `0.5`.

    Raises:
        ValueError: When `shrink` is outside (0, 1).

    Example:

    >>> optimizer = keras_fds.HyperOptimizer(
    ...     keras_fds.optimizers.SGD(),
    ...     hyperparameters=[keras_fds.Hyperparameter("learning_rate", num_buckets=7)],
    ...     outer=keras_fds.outer.SignDescent(),
    ... )

    Reference: Micaelli & Storkey (2021), section 5 and its public settings.
    """

    def __init__(self, shrink=0.5):
        self.shrink = _fraction("shrink", shrink)

    def initial_state(self, values, step_sizes):
        """The state before the first outer step.

        Args:
            values: Start values, float64 `[total_buckets]`.
            step_sizes: First step sizes, float64 `[total_buckets]`.

        Returns:
            Dictionary of float64 arrays; `values`, `step_sizes`, `best_values` and `best_loss`
            are among them.
        """
        return {
            "values": np.array(values, "float64"),
            "step_sizes": np.array(step_sizes, "float64"),
            "signs": np.zeros(np.shape(values)),
            "best_values": np.array(values, "float64"),
            "best_loss": np.array(np.inf),
        }

    def judge(self, state, measurement, ranges):
        """What a measurement is to the search: `"best"` so far, `"accepted"` or `"rejected"`."""
        if not np.isfinite(measurement.loss):
            return "rejected"
        return "best" if measurement.loss < state["best_loss"] else "accepted"

    def update(self, state, measurement, ranges):
        """One outer step.

        Args:
            state: What `initial_state` or the last `update` returned; not changed.
            measurement: A `Measurement` at `state["values"]`.
            ranges: The `Ranges` of the coordinates.

        Returns:
            The new state.
        """
        state, values = dict(state), state["values"]
        if self.judge(state, measurement, ranges) == "best":
            state.update(best_values=values, best_loss=np.array(measurement.loss))
        signs = np.nan_to_num(np.sign(measurement.hypergradients))
        flipped = signs * state["signs"] < 0
        state["step_sizes"] = np.where(flipped, self.shrink, 1.0) * state["step_sizes"]
        state["signs"] = signs
        moved = values - signs * state["step_sizes"]
        state["values"] = np.clip(moved, ranges.minimum, ranges.maximum)
        return state

    def get_config(self):
        return {"shrink": self.shrink}


@keras.saving.register_keras_serializable("keras_fds")
class TrustRegionDescent(_Rule):
    """Sign steps by factors, within a trust region, that return from what did not work.

    A bucket moves along s_k, which is nearly the sign of its hypergradient, in a coordinate φ_k in
    which a step is a factor: for a linear value λ with first step size w and the range [a, b],

        φ = log(λ − a + w) − log(b − λ),   φ_k ← φ_k − s_k r_k R,
        s_k = clip(slope_k / resolution, −1, 1)

    so that values may start at the end of their range, and never leave it; elsewhere φ = u / w of
    the coordinate u. The steps r_k start at log 2 (the first from zero is at most the
    hyperparameter's `step_size`), grow while the sign stays the same, as far as log 2, and shrink
    when it flips (resilient propagation). The slope is dL/dφ_k / |L|, a mean over neighbouring
    buckets of the hyperparameter; one that promises less than `resolution`, which is about what its
    noise is, moves its bucket by less, and so does one beyond `doubt`, which promises more than a
    whole step can keep. R is the radius common to all.

    - Validation losses have noise: their standard error, and `tolerance` times the lowest one. A
      point that broke down, or is above the lowest by more than twice the noise, is rejected: the
      search returns to the best point and halves R. With every accepted point R grows again, up to
      1. The best point is the latest that is within the noise of the lowest: of points that cannot
      be told apart it is not the luckiest, but the one that most hypergradients have led to.
    - Where training is chaotic, hypergradients explode and their signs mean nothing: a bucket whose
      |dL/dlog(λ − a)| exceeds `alarm` times the loss does not move by it. The hyperparameter with
      the greatest of them is blamed: its exploding buckets return to their values at the best
      point, or step down where they are no greater than that, and their steps shrink. Where no
      calm point is known, none is blamed at first, for single weights may have been, and R shrinks;
      when it happens again, all that explode take a whole step down. A point with such a bucket
      does not become the best while there is one without: its schedules do not carry over to other
      weights.
    - Where nothing is known yet, or no bucket has any slope, all take steps of a tenth down.
    - Losses over different horizons are not compared: the first finite one over a new horizon is
      the best of the new ones. Steps that have become small are half their greatest again.

    Args:
        tolerance: Noise of the validation loss beyond its standard error, relative to it. Defaults
            to `0.02`.
        growth: Factor on r_k when its sign stays. Defaults to `1.2`.
        shrink: Factor on r_k when its sign flips. Defaults to `0.5`.
        resolution: |dL/dφ| in units of the loss from which on a bucket takes its whole step.
            Defaults to `0.05`.
        doubt: |dL/dφ| in units of the loss beyond which a bucket takes less than its whole step.
            Defaults to `1.0`.
        alarm: |dL/dlog(λ − a)| in units of the loss beyond which training is taken for chaotic.
            Defaults to `5.0`.

    Raises:
        ValueError: When `shrink` is outside (0, 1), `tolerance` is negative, `growth` below 1,
            `resolution`, `doubt` or `alarm` not positive.

    Example:

    >>> outer = keras_fds.outer.TrustRegionDescent(tolerance=0.05)

    Reference: Riedmiller & Braun, "A direct adaptive method for faster backpropagation learning"
    (1993), for r_k; Breiman et al., "Classification and Regression Trees" (1984), for a choice
    within one standard error. docs/outer_loop.md has the evidence.
    """

    largest_step, step_out = np.log(2.0), np.log(10.0)

    def __init__(
        self, tolerance=0.02, growth=1.2, shrink=0.5, resolution=0.05, doubt=1.0, alarm=5.0
    ):
        self.tolerance = _number("tolerance", tolerance, 0.0)
        self.growth = _number("growth", growth, 1.0)
        self.shrink = _fraction("shrink", shrink)
        self.resolution = _number("resolution", resolution, 1e-12)
        self.doubt = _number("doubt", doubt, 1e-12)
        self.alarm = _number("alarm", alarm, 1e-12)

    def initial_state(self, values, step_sizes):
        """The state before the first outer step; see `SignDescent.initial_state`."""
        values, widths = np.array(values, "float64"), np.array(step_sizes, "float64")
        zeros = np.zeros_like(values)
        return {
            "values": values,
            "step_sizes": widths,
            "widths": widths,
            "steps": np.full_like(values, self.largest_step),
            "signs": zeros,
            "radius": np.array(1.0),
            "horizon": np.array(0.0),
            "best_values": values,
            "best_signs": zeros,
            "best_loss": np.array(np.inf),
            "best_is_calm": np.array(0.0),
            "lowest_loss": np.array(np.inf),
        }

    def judge(self, state, measurement, ranges):
        """What a measurement is to the search: `"best"` so far, `"accepted"` or `"rejected"`."""
        loss, lowest = measurement.loss, float(state["lowest_loss"])
        if not np.isfinite(loss):
            return "rejected"
        if measurement.horizon != state["horizon"]:
            return "best"
        calm = not (self._elasticities(state, measurement, ranges) > self.alarm).any()
        noise = self.tolerance * abs(lowest) + measurement.loss_error
        if (calm or state["best_is_calm"]) and loss > lowest + 2 * noise:
            return "rejected"
        better = loss <= lowest + noise if calm == state["best_is_calm"] else calm
        return "best" if better else "accepted"

    def converged(self, state, ranges):
        """Whether every step size is below 5% of its value, and the best point is a calm one."""
        return bool(state["best_is_calm"]) and super().converged(state, ranges)

    def update(self, state, measurement, ranges):
        """One outer step; see `SignDescent.update`."""
        verdict = self.judge(state, measurement, ranges)
        slopes = self._slopes(state, measurement, ranges)
        elasticities = self._elasticities(state, measurement, ranges)
        alarms = elasticities > self.alarm
        state, is_new = dict(state), measurement.horizon != state["horizon"]
        out = self.step_out / (state["radius"] * state["steps"])
        if verdict == "rejected" and np.isinf(state["best_loss"]):
            return self._moved(state, out, ranges)
        if verdict == "rejected":
            state["radius"] = self.shrink * state["radius"]
            state.update(values=state["best_values"], signs=state["best_signs"])
            signs = state["signs"]
        else:
            signs = out if is_new and not slopes.any() else self._signs(slopes, ranges)
            signs = np.where(alarms, 0.0, signs)
            calm_is_known = bool(state["best_is_calm"]) and not is_new
            blamed = alarms
            if calm_is_known:
                blamed = alarms & (ranges.groups == ranges.groups[np.argmax(elasticities)])
            returns = blamed & calm_is_known & (state["best_values"] < state["values"])
            agreement = np.where(returns | alarms & is_new, -1.0, signs * state["signs"])
            factors = np.select([agreement > 0, agreement < 0], [self.growth, self.shrink], 1.0)
            state["steps"] = np.minimum(factors * state["steps"], self.largest_step)
            if is_new:
                state["steps"] = np.maximum(state["steps"], self.largest_step / 2)
                state["radius"] = np.array(self.shrink if alarms.any() else 1.0)
            elif not alarms.any():
                state["radius"] = np.minimum(1.0, self.growth * state["radius"])
            state["values"] = np.where(returns, state["best_values"], state["values"])
            if not is_new:
                whole = self.largest_step / (state["radius"] * state["steps"])
                down = 1.0 if calm_is_known else whole
                signs = np.where(blamed & ~returns, down, signs)
            state["signs"] = np.where(signs != 0, signs, state["signs"])
        if verdict == "best":
            is_calm = float(not alarms.any())
            comparable = not is_new and is_calm == state["best_is_calm"]
            lowest = min(state["lowest_loss"] if comparable else np.inf, measurement.loss)
            state.update(
                best_values=state["values"],
                best_signs=signs,
                best_loss=np.array(measurement.loss),
                best_is_calm=np.array(is_calm),
                lowest_loss=np.array(lowest),
                horizon=np.array(float(measurement.horizon)),
            )
        return self._moved(state, signs, ranges)

    def _slopes(self, state, measurement, ranges):
        """dL/dφ in units of the loss."""
        distances, parts = _gauge(state, ranges)
        loss = np.maximum(np.abs(measurement.loss), 1e-100)
        with np.errstate(all="ignore"):  # They may be anything after a break-down.
            scale = measurement.lengths * distances * (1 - parts) / loss
            return np.clip(np.nan_to_num(measurement.hypergradients * scale), -1e100, 1e100)

    def _signs(self, slopes, ranges):
        sizes = np.maximum(np.abs(slopes), self.doubt)
        less = np.sign(slopes) * self.resolution * self.doubt / sizes
        believed = np.where(sizes > self.doubt, less, slopes)
        return np.clip(_smoothed(believed, ranges.groups) / self.resolution, -1.0, 1.0)

    def _elasticities(self, state, measurement, ranges):
        """|dL/dlog(λ − a)| in units of the loss."""
        distances = _gauge(state, ranges)[0]
        beginning = np.where(_is_bounded(ranges), ranges.minimum, state["values"] - distances)
        parts = (state["values"] - beginning) / distances
        return np.abs(parts * self._slopes(state, measurement, ranges))

    def _moved(self, state, signs, ranges):
        """The state with values moved against the signs."""
        distances, parts = _gauge(state, ranges)
        steps = state["radius"] * state["steps"]
        factors = np.exp(-signs * steps)
        by_factors = distances * factors / (1 - parts + parts * factors)
        is_bounded = _is_bounded(ranges)
        moved = state["values"] + np.where(
            is_bounded, by_factors - distances, -signs * steps * distances
        )
        state["step_sizes"] = np.abs(state["signs"]) * steps * distances * (1 - parts)
        state["values"] = np.clip(moved, ranges.minimum, ranges.maximum)
        return state

    def get_config(self):
        names = ("tolerance", "growth", "shrink", "resolution", "doubt", "alarm")
        return {name: getattr(self, name) for name in names}


def _smoothed(values, groups):
    """Means of neighbours within a group, weighted 1, 2, 1."""
    same = groups[1:] == groups[:-1]
    sums, weights = 2.0 * values, np.full(len(values), 2.0)
    sums[1:] += same * values[:-1]
    sums[:-1] += same * values[1:]
    weights[1:] += same
    weights[:-1] += same
    return sums / weights


def _is_bounded(ranges):
    """Where steps are factors: linear coordinates that are bounded below."""
    return ranges.linear & np.isfinite(ranges.minimum)


def _gauge(state, ranges):
    """`(d, p)`, with du/dφ = d (1 − p).

    Where steps are factors, d is the distance from the beginning of the range and p its part of
    the whole range; elsewhere d is the first step size and p is 0.
    """
    widths, is_bounded = state["widths"], _is_bounded(ranges)
    beginning = np.where(is_bounded, ranges.minimum - widths, 0.0)
    whole = np.where(is_bounded, ranges.maximum - beginning, np.inf)
    distances = np.where(is_bounded, state["values"] - beginning, widths)
    return distances, np.minimum(distances / whole, 1 - 1e-3)


def _fraction(name, value):
    if not (isinstance(value, (int, float)) and 0 < value < 1):
        raise ValueError(f"`{name}` must lie in (0, 1). Received: {name}={value!r}")
    return value


def _number(name, value, least):
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and least <= value < np.inf):
        raise ValueError(
            f"`{name}` must be a number of at least {least:g}. Received: {name}={value!r}"
        )
    return value
