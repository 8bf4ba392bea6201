"""A search by one idea: a model of the loss, and the measurement that is worth most per its cost.

The logarithm of the validation loss is a Gaussian process over schedules and horizons. Trainings
observe it, passes with hypergradients its derivatives too. The next observation is the one from
which the answer is expected to gain most per plain training; the answer is the schedule whose loss
is lowest with its uncertainty added. All is a function of the observations so far.
"""

from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import minimize
from scipy.stats import norm, qmc

from benchmarks.outer_rules.inner_loop import HYPERGRADIENTS_COST
from benchmarks.outer_rules.searchers import Proposal, Searcher

# Where a search looks: learning rate, 1 - momentum (or beta_1), weight decay. Six decades of rates.
RANGES = {
    "sgd": ((1e-5, 10.0), (5e-3, 1.0), (1e-6, 1.0)),
    "adamw": ((1e-6, 1.0), (5e-3, 1.0), (1e-5, 10.0)),
}
# Parts of the horizon, and the parts of the budget between which they are trained over.
LADDER = {0.1: (0.0, 0.15), 0.3: (0.08, 0.4), 1.0: (0.3, np.inf)}
NUM_DESIGNED = 8
CAUTION = 1.0  # Standard deviations that the answer's value counts.
UNTRAINED = 0.2  # Above the logarithm of the untrained loss all losses are alike.
REMAINING = 0.02  # What a linear decay leaves of the learning rate.
STEEPEST = 3.0  # Slopes of the logarithm of the loss beyond are noise, as exploding ones are.
NUM_SAMPLES = 128

# Hyperparameters of the Gaussian process: medians and standard deviations of their logarithms.
PRIOR = {
    "amplitude": (0.7, 0.7),  # Of the logarithm of the loss.
    "rate": (1.5, 0.4),  # Lengths on logarithmic scales.
    "average": (1.5, 0.4),
    "decay": (2.5, 0.5),
    "horizon": (2.0, 0.3),
    "noise": (0.03, 1.2),  # Of the logarithm of a loss, and of its slopes.
    "slope_noise": (0.05, 1.2),
}
MEDIANS, SPREADS = (np.array(each) for each in zip(*PRIOR.values()))


class Space:
    """Schedules as coordinates: a few values of every number, on logarithmic scales.

    The learning rate's are factors on a linear decay; of a momentum it is 1 - momentum that has a
    logarithmic scale. The distance of two schedules is that of their smoothed coordinates, so
    neighbouring values act together. With momentum, a rate counts as rate / (1 - momentum).

    Args:
        optimizer: `"sgd"` or `"adamw"`.
        num_values: Of the learning rate, the average and the weight decay.
        interpolation: `"linear"` or `"constant"`, see `keras_fds.Hyperparameter`.
    """

    def __init__(self, optimizer, num_values, interpolation, grid=16, smoothness=0.3):
        rates, averages, decays = np.log(RANGES[optimizer])
        self.low = np.array([rates[0], -averages[1], decays[0]])
        self.high = np.array([rates[1], -averages[0], decays[1]])
        self.num_values, self.size = num_values, sum(num_values)
        self.interpolation = interpolation
        ends = np.cumsum(num_values)
        self.parts = [slice(end - k, end) for end, k in zip(ends, num_values)]
        at_grid = [np.zeros((grid, self.size)) for _ in num_values]
        self.roughness, self.wiggles = np.zeros((2, self.size, self.size))
        for part, k, matrix in zip(self.parts, num_values, at_grid):
            matrix[:, part] = self._sharing(grid, k)
            self.roughness[part, part] = (np.eye(k) - 1 / k) / k
            self.wiggles[part, part] = np.linalg.cholesky(alike(k, smoothness)) * (k > 1)
        if optimizer == "sgd":
            at_grid[0] += at_grid[1]
        smoothed = alike(grid, smoothness)
        smoothed /= smoothed.sum(1, keepdims=True)
        root = np.linalg.cholesky(smoothed.T @ smoothed + 0.02 * np.eye(grid)).T
        self.maps = [root @ matrix / np.sqrt(grid) for matrix in at_grid]

    def constant(self, levels):
        """Coordinates that do not change in time."""
        return np.repeat(levels, self.num_values, axis=-1)

    def clip(self, x):
        return np.clip(x, self.constant(self.low), self.constant(self.high))

    def _sharing(self, steps, number):
        """The sharing matrix, `[steps, number]`."""
        if self.interpolation == "constant":
            return np.eye(number)[number * np.arange(steps) // steps]
        positions = np.arange(steps) / steps * (number - 1)
        return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(number)))

    def _values(self, x):
        """The values of every number, and their derivatives by their coordinates."""
        rate, average, decay = (x[part] for part in self.parts)
        middles = np.arange(len(rate)) + (0.5 if self.interpolation == "constant" else 0.0)
        ends = len(rate) if self.interpolation == "constant" else max(1, len(rate) - 1)
        rate = np.exp(rate) * (1 - (1 - REMAINING) * middles / ends)
        decay = np.exp(decay)
        return [rate, -np.expm1(-average), decay], [rate, np.exp(-average), decay]

    def schedule(self, x, horizon):
        """The schedule of coordinates, float32 `[horizon, 3]`."""
        values, _ = self._values(x)
        columns = [self._sharing(horizon, len(each)) @ each for each in values]
        return np.stack(columns, axis=1).astype("float32")

    def slopes(self, x, hypergradients):
        """Derivatives by coordinates, of those by the numbers of every step."""
        _, derivatives = self._values(x)
        return np.concatenate(
            [
                self._sharing(len(hypergradients), len(each)).T @ of_steps * each
                for each, of_steps in zip(derivatives, hypergradients.T)
            ]
        )


def alike(number, smoothness):
    """Correlations of points at equal distances in time."""
    times = np.linspace(0, 1, number)
    return np.exp(-0.5 * np.square((times[:, None] - times) / smoothness)) + 1e-6 * np.eye(number)


class Rows(NamedTuple):
    """Values of the process, and slopes: derivatives at a point along a direction."""

    points: np.ndarray
    directions: np.ndarray  # Zero for a value.
    are_slopes: np.ndarray
    horizons: np.ndarray  # Logarithms of parts of the horizon.

    def joined(self, other):
        return Rows(*map(np.concatenate, zip(self, other)))


class Surrogate:
    """The Gaussian process, given observations; its hyperparameters are the likeliest ones.

    Args:
        space: A `Space`.
        points, horizons, values: Coordinates, logarithms of the parts of the horizon, logarithms of
            the losses.
        slopes: `{number of the observation: (slopes, their variances)}`.
        curvature: Prior mean of the logarithm of the loss, in amplitudes, of schedules whose
            coordinates deviate by one from a constant. Defaults to `0.1`.
    """

    def __init__(self, space, points, horizons, values, slopes, curvature=0.1):
        self.space, self.curvature = space, curvature
        self.observed = points, horizons, values, slopes
        start = np.log(MEDIANS)
        found = minimize(self._surprise, start, method="L-BFGS-B", options={"maxiter": 40})
        self._condition(found.x)

    def _condition(self, theta):
        """Conditions the process on the observations; returns half the squared surprise."""
        self.numbers = dict(zip(PRIOR, np.exp(theta)))
        points, horizons, values, slopes = self.observed
        rows, rest = self.rows(points, horizons), [values - self._prior_mean(points)]
        variances = [np.full(len(values), self.numbers["noise"] ** 2)]
        for number, (of_point, variance) in slopes.items():
            rows = rows.joined(self.slope_rows(points[number], horizons[number]))
            rest.append(of_point - self._prior_slope(points[number]))
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

    def _surprise(self, theta):
        """Minus the logarithm of the posterior of the hyperparameters."""
        prior = 0.5 * np.sum(np.square((theta - np.log(MEDIANS)) / SPREADS))
        try:
            return self._condition(theta) + np.log(np.diag(self.root)).sum() + prior
        except np.linalg.LinAlgError:
            return 1e6

    def rows(self, points, horizons):
        """Values at points `[n, size]`."""
        embedded = self._embedded(points)
        horizons = np.broadcast_to(horizons, len(points)).astype(float)
        return Rows(embedded, np.zeros_like(embedded), np.zeros(len(points), bool), horizons)

    def slope_rows(self, point, horizon):
        """The slopes at a point by all coordinates."""
        size = len(point)
        points = np.tile(self._embedded(point[None]), (size, 1))
        directions = self._embedded(np.eye(size))
        return Rows(points, directions, np.ones(size, bool), np.full(size, float(horizon)))

    def _embedded(self, points):
        lengths = [self.numbers[name] for name in ("rate", "average", "decay")]
        parts = [points @ each.T / length for each, length in zip(self.space.maps, lengths)]
        return np.concatenate(parts, axis=-1)

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
        levels = 1.5**2 * np.exp(-0.5 * np.square(distance / 2))
        levels = levels * ~(a.are_slopes[:, None] | b.are_slopes)
        return self.numbers["amplitude"] ** 2 * over_horizons * kernel * factor + levels

    def _prior_mean(self, points):
        rough = np.einsum("ni,ij,nj->n", points, self.space.roughness, points)
        return self.curvature * self.numbers["amplitude"] * rough

    def _prior_slope(self, point):
        return 2 * self.curvature * self.numbers["amplitude"] * self.space.roughness @ point

    def mean(self, points):
        """Of the logarithm of the loss over the whole horizon."""
        of_given = self.covariance(self.rows(points, 0.0), self.given) @ self.weights
        return of_given + self.level + self._prior_mean(points)

    def posterior_covariance(self, a, b):
        of_a, of_b = (
            solve_triangular(self.root, self.covariance(self.given, each), lower=True)
            for each in (a, b)
        )
        return self.covariance(a, b) - of_a.T @ of_b

    def variance(self, points):
        """Of the logarithm of the loss over the whole horizon."""
        rows = self.rows(points, 0.0)
        explained = solve_triangular(self.root, self.covariance(self.given, rows), lower=True)
        prior = self.numbers["amplitude"] ** 2 + 1.5**2
        return np.maximum(prior - np.square(explained).sum(0), 1e-12)

    def cautious(self, points):
        """The value by which schedules are chosen: the mean with the uncertainty added."""
        return self.mean(points) + CAUTION * np.sqrt(self.variance(points))

    def change(self, points, at):
        """What observing rows can change in the means at points: `[points, rows]`, in unit normals.

        The variances that are left are smaller by the sums of squares.
        """
        noises = np.where(at.are_slopes, self.numbers["slope_noise"], self.numbers["noise"])
        of_rows = self.posterior_covariance(at, at) + np.diag(np.square(noises) + 1e-8)
        root = np.linalg.cholesky(of_rows)
        of_both = self.posterior_covariance(at, self.rows(points, 0.0))
        return solve_triangular(root, of_both, lower=True).T


class SurrogateSearcher(Searcher):
    """See above.

    Args:
        optimizer, horizon, seed: See `Searcher`.
        num_values: Of the learning rate, the average and the weight decay.
        interpolation: See `Space`. Defaults to `"linear"`.
        budget: In plain trainings. Defaults to `12`.
        with_passes: Whether passes with hypergradients are considered. Defaults to `True`.
    """

    def __init__(
        self,
        optimizer,
        horizon,
        seed,
        num_values,
        interpolation="linear",
        budget=12.0,
        with_passes=True,
    ):
        super().__init__(optimizer, horizon, seed)
        self.space = Space(optimizer, num_values, interpolation)
        self.budget, self.with_passes = budget, with_passes
        at = qmc.Sobol(3, seed=seed).random(NUM_DESIGNED)
        levels = self.space.low + at * (self.space.high - self.space.low)
        self.design = self.space.constant(levels)
        self.best = None

    def propose(self, observations):
        number, space = len(observations), self.space
        if number == 0:  # What the loss is of someone who knows nothing.
            untrained = space.constant(space.low - [5.0, 0, 0])
            return Proposal(space.schedule(untrained, self._steps(0.01)), False, untrained)
        if number <= NUM_DESIGNED:
            x = self.design[number - 1]
            return Proposal(space.schedule(x, self._steps(min(LADDER))), False, x)
        rng = np.random.default_rng([self.seed, number])
        surrogate, points = self._surrogate(observations)
        answers = self._candidates(surrogate, points, rng)
        self.best = answers[0]
        spent = sum(each.proposal.cost(self.horizon) for each in observations)
        found = self._options(surrogate, answers, spent, rng)
        if not found:
            return None
        _, x, part, with_pass = max(found, key=lambda each: each[0])
        return Proposal(space.schedule(x, self._steps(part)), with_pass, x)

    def answer(self, observations):
        return None if self.best is None else self.space.schedule(self.best, self.horizon)

    def _steps(self, part):
        return max(5, round(part * self.horizon))

    def _surrogate(self, observations):
        """`(Surrogate, points observed)`."""
        untrained, *observations = observations
        most = np.log(untrained.measured.loss) + UNTRAINED
        values, slopes = [], {}
        for number, (proposal, measured) in enumerate(observations):
            sound = not measured.broke_down and np.log(max(measured.loss, 1e-9)) < most
            values.append(np.log(max(measured.loss, 1e-9)) if sound else most)
            if sound and proposal.with_hypergradients:
                found = self.space.slopes(proposal.values, measured.hypergradients)
                found = np.clip(np.nan_to_num(found / measured.loss), -1e3, 1e3)
                variances = np.where(np.abs(found) > STEEPEST, np.square(found), 0.0)
                slopes[number] = found, variances
        points = np.array([each.proposal.values for each in observations])
        steps = np.array([len(each.proposal.schedule) for each in observations])
        horizons = np.log(steps / self.horizon)
        return Surrogate(self.space, points, horizons, np.array(values), slopes), points

    def _candidates(self, surrogate, points, rng):
        """Schedules among which the answer lies, far and near, the best one first."""
        found = np.concatenate([self._anywhere(300, rng), points])
        for _ in range(4):
            best = found[np.argsort(surrogate.cautious(found))[:3]]
            found = np.concatenate([best, *(self._near(each, 100, rng) for each in best)])
        best = found[[np.argmin(surrogate.cautious(found))]]
        near = self._near(best[0], 180, rng)
        found = np.concatenate([best, near, self._anywhere(120, rng), points])
        return found[np.argsort(surrogate.cautious(found))[:200]]

    def _anywhere(self, number, rng):
        levels = self.space.low + rng.random((number, 3)) * (self.space.high - self.space.low)
        wiggles = rng.random((number, 1)) * self._wiggles(number, rng)
        return self.space.clip(self.space.constant(levels) + wiggles)

    def _near(self, x, number, rng):
        sizes = np.exp(rng.uniform(np.log(0.05), np.log(1.5), (number, 1)))
        levels = self.space.constant(rng.standard_normal((number, 3)))
        return self.space.clip(x + sizes * (levels + self._wiggles(number, rng)))

    def _wiggles(self, number, rng):
        """Smooth changes in time."""
        return 0.5 * rng.standard_normal((number, self.space.size)) @ self.space.wiggles.T

    def _options(self, surrogate, answers, spent, rng):
        """What the budget allows, `[(gain per cost, coordinates, part of the horizon, pass)]`."""
        means, variances = surrogate.mean(answers), surrogate.variance(answers)
        now = np.min(means + CAUTION * np.sqrt(variances))
        quantiles = norm.ppf((np.arange(NUM_SAMPLES) + 0.5) / NUM_SAMPLES)[None]
        normals = rng.standard_normal((1 + self.space.size, NUM_SAMPLES // 2))
        normals = np.concatenate([normals, -normals], axis=1)

        def gain(change, samples):
            left = np.maximum(variances - np.square(change).sum(1), 0)
            cautious = (means + CAUTION * np.sqrt(left))[:, None] + change @ samples
            return now - cautious.min(0).mean()

        others = 12 + rng.permutation(len(answers) - 12)[:30]
        where = np.concatenate([answers[:12], answers[others], self._anywhere(20, rng)])
        found = []
        for part, (begin, end) in LADDER.items():
            if not begin <= spent / self.budget < end or spent + part > self.budget:
                continue
            rows = [surrogate.rows(x[None], np.log(part)) for x in where]
            for x, row in zip(where, rows):
                worth = gain(surrogate.change(answers, row), quantiles)
                found.append((worth / part, x, part, False))
            of_pass = HYPERGRADIENTS_COST * part
            if self.with_passes and part > min(LADDER) and spent + of_pass <= self.budget:
                for x, row in zip(where[:4], rows):
                    row = row.joined(surrogate.slope_rows(x, np.log(part)))
                    worth = gain(surrogate.change(answers, row), normals)
                    found.append((worth / of_pass, x, part, True))
        return found
