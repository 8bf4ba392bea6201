"""How noisy hypergradients of single steps are, and what sharing does about it.

The terms are those of Theorem 4.1 of Micaelli & Storkey (2021). Over seeds (new weights, batches in
another order) the hypergradient of step t has the mean μ_t and the variance σ_t². The noise σ is
the root of the mean variance, the drift ε bounds |μ_{t+1} − μ_t|, and the correlation c is the
largest one between the noise of two steps. A bucket of W steps estimates each of its μ_t by one
mean over the bucket, whose mean squared error is at most

    σ² (1 + c (W − 1)) / W + ε² (W² − 1) / 12 ,

against σ² without sharing. For c < 0 this needs equal variances, and W must divide the horizon;
`python -m trainers.theorem_4_1` has figures.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from keras_fds.numbers import number


def sharing_bound(noise: float, drift: float, correlation: float, steps: ArrayLike) -> np.ndarray:
    """The bound of Theorem 4.1 on the mean squared error of sharing.

    Args:
        noise: σ, in units of the hypergradient.
        drift: ε, in units of the hypergradient per step.
        correlation: c, from −1 to 1.
        steps: W, the number of steps shared over: a number or an array, at least 1.

    Returns:
        The bound in squared units of the hypergradient, float64 of the shape of `steps`.

    Raises:
        ValueError: An argument is out of range.

    Example:

    >>> float(sharing_bound(noise=0.25, drift=0.0, correlation=0.0, steps=40))
    0.0015625

    Reference: Micaelli & Storkey (2021), Theorem 4.1.
    """
    noise = number("noise", noise, least=0)
    drift = number("drift", drift, least=0)
    correlation = number("correlation", correlation, least=-1, most=1)
    steps = np.asarray(steps, "float64")
    if not np.all(steps >= 1):
        raise ValueError(f"`steps` must be at least 1. Received: steps={steps}")
    variance = noise**2 * (1 + correlation * (steps - 1)) / steps
    return variance + drift**2 * (steps**2 - 1) / 12


def best_steps(noise: float, drift: float, correlation: float = 0.0) -> float:
    """The number of steps W at which the bound of Theorem 4.1 is least.

    It is (6 σ² (1 − c) / ε²)^(1/3): the paper's formula for c = 0, derived from the bound for
    others. Noise that all steps have in common (c = 1) cannot be averaged away, so it counts for
    nothing.

    Args:
        noise, drift, correlation: As for `sharing_bound`; `correlation` defaults to `0.0`.

    Returns:
        A float of at least 1, not rounded; infinity without drift.

    Raises:
        ValueError: An argument is out of range.

    Example:

    >>> round(best_steps(noise=0.25, drift=0.08), 2)
    3.88

    Reference: Micaelli & Storkey (2021), section 4.
    """
    noise = number("noise", noise, least=0)
    drift = number("drift", drift, least=0)
    correlation = number("correlation", correlation, least=-1, most=1)
    if drift == 0:
        return float("inf") if noise * (1 - correlation) > 0 else 1.0
    return max(1.0, float(np.cbrt(6 * (1 - correlation) * (noise / drift) ** 2)))


@dataclasses.dataclass(frozen=True)
class NoiseEstimate:
    """What `estimate` found.

    Args:
        noise: σ, the root of the mean over steps of the variance over seeds.
        drift: The root mean square of μ_{t+1} − μ_t, per step, freed of what noise adds; 0 where
            noise hides it. The theorem's ε, a bound for all steps, is at least as large.
        largest_drift: The greatest |μ_{t+1} − μ_t| of the means over seeds. Noise makes it too
            large when there are few seeds.
        correlation: c, the largest correlation of steps at one distance, up to half the horizon.
            (The largest of all pairs would mostly be chance.)
        mean_correlation: The mean correlation of all pairs of steps, weighted by their noise: what
            is left of the variance when all steps share one bucket.
        seeds: Number of seeds.
        horizon: Number of inner steps.

    Example:

    >>> found = NoiseEstimate(0.25, 0.08, 0.08, 0.0, 0.0, seeds=50, horizon=400)
    >>> round(best_steps(found.noise, found.drift, found.correlation), 2)
    3.88
    """

    noise: float
    drift: float
    largest_drift: float
    correlation: float
    mean_correlation: float
    seeds: int
    horizon: int

    def bound(self, num_buckets: int) -> float:
        """The bound of Theorem 4.1 for so many buckets, with the root mean square as the drift.

        With this drift it bounds what a steady drift of that size would give. Where the buckets
        differ in length it is the mean over them, weighted by length, of a bound that supposes
        equal variances.
        """
        lengths = _lengths(num_buckets, self.horizon)
        bounds = sharing_bound(self.noise, self.drift, self.correlation, lengths)
        return float(np.average(bounds, weights=lengths))


@dataclasses.dataclass(frozen=True)
class Sharing:
    """What `measure_sharing` found, for some numbers of buckets.

    Args:
        num_buckets: Numbers of buckets, int64 `[n]`, increasing, from 1 to the horizon.
        steps: The number of steps shared over, horizon / `num_buckets`; float64 `[n]`.
        errors: Mean squared errors of sharing, float64 `[n]`, in squared units of the
            hypergradient. The last one is that without sharing, σ².
        standard_errors: Their standard errors over seeds, float64 `[n]`; approximate.
        best: The number of buckets with the least error.
        fewest: The fewest buckets whose error is above the least one by no more than one standard
            error of the difference.

    Example:

    >>> sharing = measure_sharing(np.random.default_rng(0).normal(size=(50, 100)))
    >>> sharing.best
    1
    """

    num_buckets: np.ndarray
    steps: np.ndarray
    errors: np.ndarray
    standard_errors: np.ndarray
    best: int
    fewest: int


def estimate(hypergradients: ArrayLike) -> NoiseEstimate:
    """Noise, drift and correlation of hypergradients of single steps.

    Args:
        hypergradients: Array `[seeds, horizon]`, at least three seeds and two steps: what
            `keras_fds.hypergradients(per_step=True)` returns for one hyperparameter, a row for each
            seed.

    Returns:
        A `NoiseEstimate`.

    Raises:
        ValueError: The array has another shape, or numbers that are not finite.

    Example:

    >>> found = estimate(0.5 * np.random.default_rng(0).normal(size=(50, 100)))
    >>> round(found.noise, 1)
    0.5

    Reference: Micaelli & Storkey (2021), Theorem 4.1.
    """
    h = _checked(hypergradients)
    seeds, horizon = h.shape
    deviations = h - h.mean(0)
    variances = np.square(deviations).sum(0) / (seeds - 1)
    changes = np.diff(h, axis=1)
    # Of pairs of different seeds: the expected product is the square of the mean.
    squares = (np.square(changes.sum(0)) - np.square(changes).sum(0)) / (seeds * (seeds - 1))
    total = np.square(deviations.sum(1)).sum() / (seeds - 1)
    pairs = np.sqrt(variances).sum() ** 2 - variances.sum()  # Σ σ_t σ_u of different steps.
    return NoiseEstimate(
        noise=float(np.sqrt(variances.mean())),
        drift=float(np.sqrt(max(squares.mean(), 0.0))),
        largest_drift=float(np.abs(changes.mean(0)).max()),
        correlation=_largest_correlation(deviations, variances),
        mean_correlation=float((total - variances.sum()) / pairs) if pairs > 0 else 0.0,
        seeds=seeds,
        horizon=horizon,
    )


def measure_sharing(hypergradients: ArrayLike, num_buckets: Iterable[int] | None = None) -> Sharing:
    """The mean squared error of sharing, measured: which number of buckets is best.

    One seed's mean over a bucket estimates the expected hypergradient of each step in it. What is
    expected is estimated from the other seeds; what their noise adds is subtracted. So the errors
    have no bias, whatever the distribution of the noise. Small ones may come out below zero.

    The best number of buckets is for the schedule at which the hypergradients were measured, and
    for estimating them from one run. It says nothing of how many values a good schedule needs.

    Args:
        hypergradients: As for `estimate`.
        num_buckets: Numbers of buckets to measure, from 1 to the horizon; the ends are always
            measured. Defaults to about thirty numbers, evenly spaced in their logarithms.

    Returns:
        A `Sharing`.

    Raises:
        ValueError: As for `estimate`, or a number of buckets is out of range.

    Example:

    >>> ramp = np.arange(100) + np.random.default_rng(0).normal(size=(50, 100))
    >>> measure_sharing(ramp, num_buckets=[1, 10, 50, 100]).best
    50
    """
    h = _checked(hypergradients)
    horizon = h.shape[1]
    if num_buckets is None:
        num_buckets = np.rint(np.geomspace(1, horizon, min(horizon, 30)))
    measured = {1, horizon}
    for each in num_buckets:
        measured.add(number("num_buckets", each, least=1, most=horizon, whole=True))
    counts = np.array(sorted(measured))
    of_seeds = np.stack([_errors_of_seeds(_shared(h, count), h) for count in counts], axis=1)
    errors, standard_errors = _mean(of_seeds)
    best = int(np.argmin(errors))
    excess, its_error = _mean(of_seeds - of_seeds[:, best : best + 1])
    return Sharing(
        num_buckets=counts,
        steps=horizon / counts,
        errors=errors,
        standard_errors=standard_errors,
        best=int(counts[best]),
        fewest=int(counts[np.argmax(excess <= its_error)]),
    )


def error_of(estimates: ArrayLike, hypergradients: ArrayLike) -> tuple[float, float]:
    """The mean squared error of any estimates of the expected hypergradients of single steps.

    Args:
        estimates: Array `[seeds, horizon]`, such as greedy hypergradients. A row must not depend on
            seeds other than its own.
        hypergradients: As for `estimate`, of the same seeds.

    Returns:
        `(error, standard_error)`, floats in squared units of the hypergradient, as in
        `measure_sharing`.

    Raises:
        ValueError: As for `estimate`, or the shapes differ.

    Example:

    >>> noisy = np.random.default_rng(0).normal(size=(50, 100))
    >>> error, _ = error_of(noisy + 3.0, noisy)
    >>> round(error)
    10
    """
    given, h = _checked(estimates), _checked(hypergradients)
    if given.shape != h.shape:
        raise ValueError(
            "`estimates` and `hypergradients` must have one shape. "
            f"Received: {given.shape} and {h.shape}"
        )
    error, standard_error = _mean(_errors_of_seeds(given, h))
    return float(error), float(standard_error)


def _checked(hypergradients):
    h = np.asarray(hypergradients, "float64")
    if h.ndim != 2 or h.shape[0] < 3 or h.shape[1] < 2:
        raise ValueError(
            "Hypergradients must be an array [seeds, horizon] of at least three seeds and two "
            f"steps. Received: shape={h.shape}"
        )
    broken = np.flatnonzero(~np.isfinite(h).all(axis=1)).tolist()
    if broken:
        raise ValueError(
            "Hypergradients must be finite. Leave out the seeds whose training broke down. "
            f"Received: NaN or infinity in rows {broken}"
        )
    return h


def _lengths(num_buckets, horizon):
    """Steps of each bucket, `[num_buckets]`; step t is in bucket ⌊num_buckets · t / horizon⌋."""
    return np.bincount(num_buckets * np.arange(horizon) // horizon, minlength=num_buckets)


def _shared(h, num_buckets):
    """Every step's mean over its bucket, `[seeds, horizon]`."""
    lengths = _lengths(num_buckets, h.shape[1])
    means = np.add.reduceat(h, np.cumsum(lengths) - lengths, axis=1) / lengths
    return np.repeat(means, lengths, axis=1)


def _errors_of_seeds(estimates, h):
    """Mean squared errors against the expectation, without bias, `[seeds]`."""
    others = (h.sum(0) - h) / (len(h) - 1)
    of_others = h.var(0, ddof=1).mean() / (len(h) - 1)
    return np.square(estimates - others).mean(1) - of_others


def _mean(of_seeds):
    return of_seeds.mean(0), of_seeds.std(0, ddof=1) / np.sqrt(len(of_seeds))


def _largest_correlation(deviations, variances):
    seeds, horizon = deviations.shape
    found = []
    for distance in range(1, max(1, horizon // 2) + 1):
        covariance = (deviations[:, distance:] * deviations[:, :-distance]).sum() / (seeds - 1)
        scale = np.sqrt(variances[distance:] * variances[:-distance]).sum()
        found.append(covariance / scale if scale > 0 else 0.0)
    return float(np.clip(max(found), -1.0, 1.0))
