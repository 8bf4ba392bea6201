"""The Gaussian process of `BayesianOptimization`: the logarithm of the loss, with derivatives."""

from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import minimize

# Hyperparameters of the process: medians and standard deviations of their logarithms. The lengths
# are on the scales on which values are searched.
PRIOR = {
    "amplitude": (0.7, 0.7),  # Of the logarithm of the loss.
    "horizon": (2.0, 0.3),  # Length, of the logarithm of the horizon.
    "noise": (0.03, 1.2),  # Of the logarithm of a loss, and of its slopes.
    "slope_noise": (0.05, 1.2),
    "learning_rate": (1.5, 0.4),
    "average": (1.5, 0.4),
    "weight_decay": (2.5, 0.5),
    "other": (2.5, 0.5),
}
CURVATURE = 0.1  # Prior mean, in amplitudes, of schedules that deviate by one from a constant.
ENDS = 0.25  # Prior mean, in amplitudes, at either end of a hyperparameter's range.
MOST_SLOPES = 200  # From which the process's hyperparameters are found.
LEVELS = 1.5, 2.0  # Deviation and length of what depends on the horizon alone.


class Rows(NamedTuple):
    """Values of the process, and slopes: derivatives at a point along a direction."""

    points: np.ndarray
    directions: np.ndarray  # Zero for a value.
    are_slopes: np.ndarray
    horizons: np.ndarray  # Logarithms of parts of the horizon.

    def joined(self, other):
        return Rows(*map(np.concatenate, zip(self, other)))


class GaussianProcess:
    """The process, given observations; its hyperparameters are the likeliest ones.

    Args:
        space: A `Space`.
        points, horizons, values: What was observed: points, logarithms of parts of the horizon,
            logarithms of losses.
        slopes: `{number of the observation: (slopes along the space's modes, variances)}`.

    Reference: Rasmussen & Williams, "Gaussian Processes for Machine Learning" (2006), chapters 2, 5
    and section 9.4 (derivatives); Hvarfner, Hellsten & Nardi, "Vanilla Bayesian optimization
    performs great in high dimensions" (2024), for lengths that grow with the number of
    hyperparameters.
    """

    def __init__(self, space, points, horizons, values, slopes):
        self.space, self.observed = space, (points, horizons, values)
        others = sum(kind == "other" for kind in space.kinds)
        prior = {k: v for k, v in PRIOR.items() if k in space.kinds or k in list(PRIOR)[:4]}
        self.names = list(prior)
        medians, self.spreads = zip(*prior.values())
        self.medians = np.log(medians)
        if others > 3:
            self.medians[self.names.index("other")] += 0.5 * np.log(others / 3)
        numbers = sorted(slopes, reverse=True)  # The latest ones suffice to find the likeliest.
        sizes = np.cumsum([len(slopes[i][0]) for i in numbers])
        latest = {i: slopes[i] for i, size in zip(numbers, sizes) if size <= MOST_SLOPES}
        found = minimize(
            lambda logarithms: self._surprise(logarithms, latest),
            self.medians,
            method="L-BFGS-B",
            bounds=[(m - 6 * s, m + 6 * s) for m, s in zip(self.medians, self.spreads)],
            options={"maxiter": 40},
        )
        self._condition(found.x, slopes)

    def _condition(self, logarithms, slopes):
        """Conditions the process on what was observed; returns half the squared surprise."""
        self.numbers = dict(zip(self.names, np.exp(logarithms)))
        points, horizons, values = self.observed
        rows, rest = self.rows(points, horizons), [values - self._prior_mean(points)]
        variances = [np.full(len(values), self.numbers["noise"] ** 2)]
        for number, (of_point, variance) in slopes.items():
            rows = rows.joined(self.slope_rows(points[number], horizons[number]))
            rest.append(of_point - self._prior_slope(points[number]) @ self.space.modes)
            variances.append(self.numbers["slope_noise"] ** 2 + variance)
        self.given = rows
        noise = np.diag(np.concatenate(variances) + 1e-8)
        self.root = np.linalg.cholesky(self.covariance(rows, rows) + noise)
        both = np.stack([np.concatenate(rest), ~rows.are_slopes], axis=1)
        rest, ones = solve_triangular(self.root, both, lower=True).T
        self.level = rest @ ones / (ones @ ones)
        rest = rest - self.level * ones
        self.weights = solve_triangular(self.root.T, rest, lower=False)
        return 0.5 * rest @ rest

    def _surprise(self, logarithms, slopes):
        """Minus the logarithm of the posterior of the process's hyperparameters."""
        prior = 0.5 * np.sum(np.square((logarithms - self.medians) / self.spreads))
        try:
            return self._condition(logarithms, slopes) + np.log(np.diag(self.root)).sum() + prior
        except np.linalg.LinAlgError:
            return 1e6

    # ------------------------------------------------------------------------------ the prior
    def rows(self, points, horizons=0.0):
        """Values at points `[n, size]`."""
        embedded = self._embedded(points)
        horizons = np.broadcast_to(horizons, len(points)).astype(float)
        return Rows(embedded, np.zeros_like(embedded), np.zeros(len(points), bool), horizons)

    def slope_rows(self, point, horizon):
        """The slopes at a point along the space's modes."""
        directions = self._embedded(self.space.modes.T)
        points = np.tile(self._embedded(point[None]), (len(directions), 1))
        number = len(directions)
        return Rows(points, directions, np.ones(number, bool), np.full(number, float(horizon)))

    def nearness(self, a, b, lengths):
        """How near points `[n, size]` and `[m, size]` are, from 0 to 1: `[n, m]`."""
        a, b = self._embedded(a), self._embedded(b)
        squares = np.square(a[:, None] - b).sum(axis=-1)
        return np.exp(-0.5 * squares / lengths**2)

    def _embedded(self, points):
        maps = zip(self.space.maps, self.space.kinds)
        return np.concatenate([points @ map.T / self.numbers[kind] for map, kind in maps], axis=-1)

    def covariance(self, a, b):
        """Of two sets of rows: a squared exponential, its derivatives along directions."""
        squares = np.square(a.points).sum(1)[:, None] + np.square(b.points).sum(1)
        kernel = np.exp(-0.5 * np.maximum(squares - 2 * a.points @ b.points.T, 0))
        along_a = (a.points * a.directions).sum(1)[:, None] - a.directions @ b.points.T
        along_b = a.points @ b.directions.T - (b.points * b.directions).sum(1)
        of_both = a.directions @ b.directions.T - along_a * along_b
        of_slopes = np.where(b.are_slopes, of_both, -along_a)
        factor = np.where(a.are_slopes[:, None], of_slopes, np.where(b.are_slopes, along_b, 1.0))
        distance = a.horizons[:, None] - b.horizons
        over_horizons = np.exp(-0.5 * np.square(distance / self.numbers["horizon"]))
        levels = LEVELS[0] ** 2 * np.exp(-0.5 * np.square(distance / LEVELS[1]))
        levels = levels * ~(a.are_slopes[:, None] | b.are_slopes)
        return self.numbers["amplitude"] ** 2 * over_horizons * kernel * factor + levels

    def _prior_mean(self, points):
        rough = np.einsum("ni,ij,nj->n", points, self.space.roughness, points)
        ends = np.square(self.space.offsets(points)).sum(axis=1)
        return self.numbers["amplitude"] * (CURVATURE * rough + ENDS * ends)

    def _prior_slope(self, point):
        rough, ends = (
            self.space.roughness @ point,
            self.space.offsets(point) @ self.space.offset_map,
        )
        return 2 * self.numbers["amplitude"] * (CURVATURE * rough + ENDS * ends)

    # ------------------------------------------------------- the posterior, at the whole horizon
    def mean(self, points, horizons=0.0):
        """At points `[n, size]`; by default over the whole horizon."""
        of_given = self.covariance(self.rows(points, horizons), self.given) @ self.weights
        return of_given + self.level + self._prior_mean(points)

    def variance(self, points):
        explained = np.square(self.explained(self.rows(points))).sum(axis=0)
        return np.maximum(self.numbers["amplitude"] ** 2 + LEVELS[0] ** 2 - explained, 1e-12)

    def explained(self, rows):
        """What the observations tell of rows: `[observed rows, rows]`, in unit normals."""
        return solve_triangular(self.root, self.covariance(self.given, rows), lower=True)

    def posterior_covariance(self, a, b, of_a=None, of_b=None):
        """Of two sets of rows, whose `explained` may be given."""
        of_a = self.explained(a) if of_a is None else of_a
        of_b = self.explained(b) if of_b is None else of_b
        return self.covariance(a, b) - of_a.T @ of_b

    def noises(self, rows):
        """Variances of the noise of observed rows."""
        names = np.where(rows.are_slopes, "slope_noise", "noise")
        return np.square([self.numbers[name] for name in names]) + 1e-8
