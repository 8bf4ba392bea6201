"""The default outer update rule: steps by factors within a trust region."""

import keras
import numpy as np

from keras_fds.numbers import number
from keras_fds.outer.base import Rule, fraction


@keras.saving.register_keras_serializable("keras_fds")
class TrustRegionDescent(Rule):
    """Sign steps by factors, within a trust region; returns from points that are worse.

    A bucket moves along s_k, which is nearly the sign of its hypergradient, in a coordinate φ_k in
    which a step is a factor. For a linear value λ with first step size w and the range [a, b],

        φ = log(λ − a + w) − log(b − λ),   φ_k ← φ_k − s_k r_k R,
        s_k = clip(slope_k / noise_floor, −1, 1)

    so values may start at the ends of their range, and never leave it. On other scales φ is the
    coordinate u; of a linear coordinate without a minimum it is u / w. The steps r_k start at log 2
    (the first from zero is at most the hyperparameter's `step_size`); on other scales they start at
    `step_size`. They grow while the sign stays the same. When it flips they shrink, by less when
    one of both signs was unclear (resilient propagation). r_k R never exceeds log 2. The slope is
    dL/dφ_k / |L|, a mean over neighbouring buckets of the hyperparameter. A slope below
    `noise_floor` is mostly noise and moves its bucket by less than a whole step. So does a slope
    above `max_relative_slope`, which promises more than a whole step can keep. Slopes of buckets
    shorter than their hyperparameter's `smoothing_window` are scaled to one bucket of that length
    and averaged over as many more neighbours: many buckets are learned as fast as few, and
    smoothly.

    - The noise of a hyperparameter's slopes is how much they differ from the mean of both
      neighbours, in the median over its buckets. When two standard deviations of it exceed
      `noise_floor`, they replace it: when slopes point here and there, no bucket goes far. In the
      mean over neighbours no slope counts for more than four times that.
    - The noise of a validation loss is the standard error of the lowest loss, plus `tolerance`
      times that loss. A point that broke down, or is above the lowest by more than twice the noise,
      is rejected: the search returns to the best point and halves R. (A chaotic point is not
      rejected as long as all points were chaotic, see below.) The best point is the latest one
      within the noise of the lowest: of points that cannot be told apart, most hypergradients have
      led to this one.
    - R is common to all buckets and starts at 1. When the loss has fallen by more than the noise
      since it last did, R doubles, up to 1. Otherwise R becomes R / (1 + R), as in 1, 1/2, 1/3, …:
      near the optimum the values become a running mean over what the noisy hypergradients propose
      (stochastic approximation). Over another horizon, and when the first point of all is chaotic,
      R begins with 1/2.
    - When training is chaotic, hypergradients explode and their signs mean nothing. A bucket whose
      |dL/dlog((λ − a) / (b − λ))| exceeds `instability_threshold` times the loss steps down by √2
      instead, or by 2 as long as no stable point is known over this horizon, and takes its
      neighbours along. Over a new horizon it only follows its neighbours: single weights may have
      been the cause. A point with such a bucket, or with hypergradients that are not numbers,
      becomes the best only with the lowest loss of all, and a stable one within twice the noise
      replaces it: its schedules carry over to other weights less well. When a step down is
      rejected, it was a steep descent: the search follows the slopes, and the instability threshold
      of this horizon is multiplied by four.
    - When the first run breaks down, all buckets step down by a factor of 10; also when no bucket
      has any slope at the first point over a horizon. When a longer horizon breaks down, the search
      tries the values of the best point over the last horizon, then steps down by 2.
    - Losses over different horizons are not compared: the first finite loss over a new horizon is
      the lowest. Steps that have become small are raised to half of their first size.

    Args:
        tolerance: Noise of the validation loss beyond its standard error, relative to the lowest
            loss. With one validation batch the standard error is not known: then it should cover
            the differences between restarts. Defaults to `0.02`.
        growth: Factor on r_k when its sign stays. Defaults to `1.2`.
        shrink: Factor on r_k when its sign flips. Defaults to `0.5`.
        noise_floor: |dL/dφ| in units of the loss above which a bucket takes its whole step.
            Defaults to `0.05`.
        max_relative_slope: |dL/dφ| in units of the loss beyond which a bucket takes less than its
            whole step. Defaults to `1.0`.
        instability_threshold: |dL/dlog((λ − a) / (b − λ))| in units of the loss beyond which
            training counts as chaotic. Defaults to `5.0`.

    Raises:
        ValueError: When `shrink` is outside (0, 1), `tolerance` is negative, `growth` below 1,
            `noise_floor`, `max_relative_slope` or `instability_threshold` not positive.

    Example:

    >>> outer = keras_fds.outer.TrustRegionDescent(tolerance=0.05)

    Reference: Riedmiller & Braun, "A direct adaptive method for faster backpropagation learning"
    (1993), for r_k; Gasser, Sroka & Jennen-Steinmetz, "Residual variance and residual pattern in
    nonlinear regression" (1986), for the slopes' noise; Robbins & Monro, "A stochastic
    approximation method" (1951), for R; Breiman et al., "Classification and Regression Trees"
    (1984), for a choice within one standard error.
    docs/research_log.md has the evidence.
    """

    largest_step = np.log(2.0)

    def __init__(
        self,
        tolerance=0.02,
        growth=1.2,
        shrink=0.5,
        noise_floor=0.05,
        max_relative_slope=1.0,
        instability_threshold=5.0,
    ):
        self.tolerance = number("tolerance", tolerance, least=0)
        self.growth = number("growth", growth, least=1)
        self.shrink = fraction("shrink", shrink)
        self.noise_floor = number("noise_floor", noise_floor, above=0)
        self.max_relative_slope = number("max_relative_slope", max_relative_slope, above=0)
        self.instability_threshold = number("instability_threshold", instability_threshold, above=0)

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
            "instability_threshold": np.array(self.instability_threshold),
            "stepped_down": np.array(0.0),
            "horizon": np.array(0.0),
            "best_values": values,
            "best_signs": zeros,
            "best_loss": np.array(0.0),  # Of no meaning while `horizon` is 0.
            "best_is_stable": np.array(0.0),
            "lowest_loss": np.array(0.0),
            "lowest_error": np.array(0.0),
            "reference_loss": np.array(0.0),
        }

    def classify(self, state, measurement, ranges):
        """The verdict on a measurement: `"best"` so far, `"accepted"` or `"rejected"`."""
        loss, lowest = measurement.loss, float(state["lowest_loss"])
        if measurement.broke_down:
            return "rejected"
        if measurement.horizon != state["horizon"]:
            return "best"
        stable = self._is_stable(state, measurement, ranges)
        noise = self._noise(state)
        if (stable or state["best_is_stable"]) and loss > lowest + 2 * noise:
            return "rejected"
        if stable == state["best_is_stable"]:
            return "best" if loss <= lowest + noise else "accepted"
        return "best" if stable or loss < lowest else "accepted"

    def _noise(self, state):
        return self.tolerance * abs(state["lowest_loss"]) + state["lowest_error"]

    def converged(self, state, ranges):
        """Whether every step size is below 5% of its value, and the best point is stable."""
        return bool(state["best_is_stable"]) and super().converged(state, ranges)

    def update(self, state, measurement, ranges):
        """One outer step; see `SignDescent.update`."""
        verdict, state = self.classify(state, measurement, ranges), dict(state)
        is_new = measurement.horizon != state["horizon"]
        if verdict == "rejected" and is_new:
            return self._moved_towards_stable(state, ranges)
        if is_new:
            state["instability_threshold"] = np.array(self.instability_threshold)
        if verdict == "rejected":
            state["radius"] = self.shrink * state["radius"]
            if state["stepped_down"]:
                state["instability_threshold"] = 4.0 * state["instability_threshold"]
            state.update(values=state["best_values"], signs=state["best_signs"])
            state["stepped_down"] = np.array(0.0)
            return self._moved(state, state["signs"], ranges)
        falls = not is_new and measurement.loss < state["reference_loss"] - self._noise(state)
        slopes = self._slopes(state, measurement, ranges)
        elasticities = self._elasticities(state, measurement, ranges)
        is_unstable = elasticities > state["instability_threshold"]
        is_stable = self._is_stable(state, measurement, ranges)
        stable_is_known = bool(state["best_is_stable"]) and not is_new
        signs = self._signs(np.where(is_unstable, 0.0, slopes), ranges)
        exploding = _mean_over_neighbours(is_unstable & (not is_new), ranges)
        directions = np.stack([signs + exploding, state["signs"]])
        agreement = directions.prod(axis=0)
        flips = np.minimum(np.abs(directions).min(axis=0), 1.0)
        factors = np.select([agreement > 0, agreement < 0], [self.growth, self.shrink**flips], 1.0)
        state["steps"] = factors * state["steps"]
        if is_new:
            is_first = state["horizon"] == 0
            wholes = np.where(ranges.linear, self.largest_step, state["widths"])
            wholes = np.minimum(wholes, self.largest_step)
            state["steps"] = wholes if is_first else np.maximum(state["steps"], wholes / 2)
            state["radius"] = np.array(1.0 if is_first and is_stable else self.shrink)
        elif falls:
            state["radius"] = np.minimum(1.0, state["radius"] / self.shrink)
        else:
            state["radius"] = state["radius"] / (1 + state["radius"])
        state["steps"] = np.minimum(state["steps"], self.largest_step / state["radius"])
        if is_new or falls:
            state["reference_loss"] = np.array(measurement.loss)
        along = np.where(exploding > 0, self._signs(slopes, ranges), signs)
        signs = signs + exploding * _down_by(2.0**0.5 if stable_is_known else 2.0, state)
        state["stepped_down"] = np.array(float(exploding.any()))
        if is_new and not slopes.any():
            along = signs = _down_by(10.0, state)
        state["signs"] = np.where(signs != 0, signs, state["signs"])
        if verdict == "best":
            if is_new or measurement.loss < state["lowest_loss"]:
                state["lowest_loss"] = np.array(measurement.loss)
                state["lowest_error"] = np.array(measurement.loss_error)
            state.update(
                best_values=state["values"],
                best_signs=along,
                best_loss=np.array(measurement.loss),
                best_is_stable=np.array(float(is_stable)),
                horizon=np.array(float(measurement.horizon)),
            )
        return self._moved(state, signs, ranges)

    def _moved_towards_stable(self, state, ranges):
        """The state after a break-down, when no point is known over the horizon."""
        if state["horizon"] == 0:
            return self._moved(state, _down_by(10.0, state), ranges)
        if (state["values"] > state["best_values"]).any():  # The best point over another horizon.
            state["values"] = np.minimum(state["values"], state["best_values"])
            return self._moved(state, np.zeros_like(state["signs"]), ranges)
        return self._moved(state, _down_by(2.0, state), ranges)

    def _slopes(self, state, measurement, ranges):
        """dL/dφ in units of the loss, as if no bucket were shorter than its smoothing window."""
        distances, parts = _gauge(state, ranges)
        loss = np.maximum(np.abs(measurement.loss), 1e-100)
        with np.errstate(all="ignore"):  # Chaotic hypergradients may overflow.
            scale = distances * (1 - parts) / loss
            slopes = measurement.hypergradients * scale * ranges.smoothing_windows
            return np.clip(np.nan_to_num(slopes), -1e100, 1e100)

    def _signs(self, slopes, ranges):
        """The s_k of a measurement, from its slopes."""
        clear = np.maximum(self.noise_floor, 2 * _scatter(slopes, ranges))
        means = _mean_over_neighbours(np.clip(slopes, -4 * clear, 4 * clear), ranges)
        kept = self.max_relative_slope / np.maximum(np.abs(slopes), self.max_relative_slope)
        return kept * np.clip(means / clear, -1.0, 1.0)

    def _elasticities(self, state, measurement, ranges):
        """|dL/dlog((λ − a) / (b − λ))| in units of the loss."""
        distances = _gauge(state, ranges)[0]
        beginning = np.where(_is_bounded(ranges), ranges.minimum, state["values"] - distances)
        parts = (state["values"] - beginning) / distances
        return np.abs(parts * self._slopes(state, measurement, ranges))

    def _is_stable(self, state, measurement, ranges):
        known = np.isfinite(measurement.hypergradients).all()
        threshold = self.instability_threshold
        if measurement.horizon == state["horizon"]:
            threshold = state["instability_threshold"]
        elasticities = self._elasticities(state, measurement, ranges)
        return bool(known and (elasticities <= threshold).all())

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
        return {
            "tolerance": self.tolerance,
            "growth": self.growth,
            "shrink": self.shrink,
            "noise_floor": self.noise_floor,
            "max_relative_slope": self.max_relative_slope,
            "instability_threshold": self.instability_threshold,
        }


def _down_by(factor, state):
    """Signs that move every bucket down by a factor, whatever its step and the radius."""
    return np.log(factor) / (state["radius"] * state["steps"])


def _mean_over_neighbours(slopes, ranges):
    """Means over buckets of the same hyperparameter; weights 1, 2, 1 for a window of 1."""
    positions = np.arange(len(slopes))
    weights = 2 * ranges.smoothing_windows - np.abs(positions[:, None] - positions)
    same = ranges.groups[:, None] == ranges.groups
    weights = np.where(same, np.maximum(weights, 0.0), 0.0)
    return weights @ slopes / weights.sum(axis=1)


def _scatter(slopes, ranges):
    """The slopes' noise: their standard deviation, the same for all buckets of a hyperparameter.

    It is estimated from the median of |s_k − (s_{k−1} + s_{k+1}) / 2|, which is 0.826 σ for
    independent noise around a smooth curve and ignores outliers. Zero for fewer than three buckets.
    """
    scatter = np.zeros_like(slopes)
    for group in np.unique(ranges.groups):
        of_group = ranges.groups == group
        bends = np.abs(np.diff(slopes[of_group], 2)) / 2
        scatter[of_group] = np.median(bends) / 0.826 if bends.size else 0.0
    return scatter


def _is_bounded(ranges):
    """Where steps are factors: linear coordinates that are bounded below."""
    return ranges.linear & np.isfinite(ranges.minimum)


def _gauge(state, ranges):
    """`(d, p)`, with du/dφ = d (1 − p).

    Where steps are factors, d is the distance from the beginning of the range and p its part of the
    whole range; at the very end p is such that the first step back is one first step size.
    Elsewhere p is 0, and d is 1, or the first step size in linear coordinates.
    """
    values, widths, is_bounded = state["values"], state["widths"], _is_bounded(ranges)
    beginning = np.where(is_bounded, ranges.minimum - widths, 0.0)
    whole = np.where(is_bounded, ranges.maximum - beginning, np.inf)
    distances = np.where(is_bounded, values - beginning, np.where(ranges.linear, widths, 1.0))
    rest = np.where(values >= ranges.maximum, np.minimum(widths / whole, 0.5), 1e-3)
    return distances, np.minimum(distances / whole, 1 - rest)
