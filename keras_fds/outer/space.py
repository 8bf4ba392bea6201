"""Where `BayesianOptimization` searches: schedules as points, and what makes two of them alike."""

import numpy as np

GRID = 16  # Times at which schedules are compared.
SMOOTHNESS = 0.3  # Part of the horizon over which values act together.
LEFT = 0.02  # What a linear decay leaves of the learning rate.
SHRINKAGE = (0.01, 20.0)  # Least and most learning rate times weight decay, summed over a horizon.


class Space:
    """Schedules as points: a coordinate for every value of every hyperparameter.

    - A coordinate is a value on the scale on which it is searched, mostly a logarithm
      (`Hyperparameter.searched`); of an exponential average β it is −log(1 − β).
    - Learning rates are factors on a linear decay.
    - Points mean the same over all horizons: over a shorter horizon the weight decay is greater,
      so that the weights shrink by as much.
    - The distance of two points is that of their schedules, smoothed, on a grid of times. With
      momentum a rate η counts as η / (1 − momentum), and a weight decay ξ as the rate times ξ.

    Args:
        problem: A `Problem`.

    Attributes:
        size: The number of coordinates.
        kinds: What hyperparameters are, for the lengths of the process: a list of names.
        maps: For each, the matrix from points to smoothed schedules, `[GRID, size]`.
        low, high: The ranges of the hyperparameters, `[hyperparameters]`.
        modes: The smooth changes in time, orthogonal columns `[size, modes]`, and their sizes.
        roughness: A quadratic form of how much the values of hyperparameters differ in time.
    """

    def __init__(self, problem):
        self.problem, self.buckets = problem, problem.buckets
        self.hyperparameters = self.buckets.hyperparameters
        self.names, self.size = self.buckets.names, self.buckets.size
        scales, self.low, self.high = zip(*(h.searched for h in self.hyperparameters))
        self.low, self.high = np.array(self.low), np.array(self.high)
        self.kinds = [_kind(name, scale) for name, scale in zip(self.names, scales)]
        self.parts = self.buckets.split(np.arange(self.size))
        widths = np.where([scale == "linear" for scale in scales], (self.high - self.low) / 4, 1.0)
        at_grid = {h.name: self._at_grid(h) / w for h, w in zip(self.hyperparameters, widths)}
        usual = {"learning_rate": "log", "momentum": "complement", "weight_decay": "log"}
        together = {name for name, scale in zip(self.names, scales) if usual.get(name) == scale}
        if {"learning_rate", "momentum"} <= together:
            at_grid["learning_rate"] = at_grid["learning_rate"] + at_grid["momentum"]
        if {"learning_rate", "weight_decay"} <= together:
            at_grid["weight_decay"] = at_grid["weight_decay"] + at_grid["learning_rate"]
        smoothed = _alike(GRID)
        smoothed /= smoothed.sum(axis=1, keepdims=True)
        root = np.linalg.cholesky(smoothed.T @ smoothed + 0.02 * np.eye(GRID)).T
        self.maps = [root @ matrix / np.sqrt(GRID) for matrix in at_grid.values()]
        # Levels are compared as rates, averages, and how much the weights shrink over the horizon.
        self.low_levels, self.high_levels = self.low.copy(), self.high.copy()
        self.to_levels, self.shift = np.eye(len(self.names)), np.zeros(len(self.names))
        if {"learning_rate", "weight_decay"} <= together:
            decay = self.names.index("weight_decay")
            self.low_levels[decay], self.high_levels[decay] = np.log(SHRINKAGE)
            self.shift[decay] = np.log(problem.horizon / 2)
            for name in {"learning_rate", "momentum"} & together:
                self.to_levels[decay, self.names.index(name)] = -1.0
        means = self.buckets.owners == np.arange(len(self.names))[:, None]
        means = means / means.sum(axis=1, keepdims=True)
        halves = (self.high_levels - self.low_levels) / 2
        self.offset_map = np.linalg.inv(self.to_levels) @ means / halves[:, None]
        self.offset = np.linalg.inv(self.to_levels) @ self.shift / halves
        self.offset -= (self.low_levels + self.high_levels) / 2 / halves
        self.roughness, modes, sizes = np.zeros((self.size, self.size)), [], []
        for part, width in zip(self.parts.values(), widths):
            number = len(part)
            self.roughness[np.ix_(part, part)] = (np.eye(number) - 1 / number) / number / width**2
            of_modes, vectors = np.linalg.eigh(_alike(number))
            clear = of_modes > 0.003 * of_modes[-1]
            columns = np.zeros((self.size, clear.sum()))
            columns[part] = vectors[:, clear]
            modes.append(columns)
            sizes.append(width * np.sqrt(of_modes[clear]) * (number > 1))
        self.modes, self.mode_sizes = np.concatenate(modes, axis=1), np.concatenate(sizes)

    def _at_grid(self, hyperparameter):
        """From points to its values at the times of the grid, `[GRID, size]`."""
        each = -(-hyperparameter.num_buckets // GRID)
        rows = [hyperparameter.sums(row) for row in np.eye(each * GRID)]
        found = np.zeros((GRID, self.size))
        found[:, self.parts[hyperparameter.name]] = np.reshape(rows, (GRID, each, -1)).mean(axis=1)
        return found

    # ------------------------------------------------------------------------ points and values
    def _factors(self, name, horizon):
        """What values are in units of those that coordinates stand for."""
        number = len(self.parts[name])
        if name == "learning_rate":
            interpolation = self.hyperparameters[self.names.index(name)].interpolation
            constant = interpolation == "constant"
            times = (np.arange(number) + 0.5 * constant) / max(1, number - (not constant))
            return 1 - (1 - LEFT) * times
        if name == "weight_decay":
            return np.full(number, self.problem.horizon / horizon)
        return np.ones(number)

    def _values(self, point, horizon):
        """`{name: values}`, and their derivatives by the coordinates of the point."""
        values, derivatives = {}, {}
        for h in self.hyperparameters:
            factors = self._factors(h.name, horizon)
            found = h.from_searched(point[self.parts[h.name]])
            values[h.name] = np.clip(factors * found, h.min_value, h.max_value)
            derivatives[h.name] = factors * h.derivatives_by_searched(found)
        return values, derivatives

    def coordinates(self, point, horizon):
        """The coordinates of the buckets, at a point."""
        return self.buckets.coordinates(self._values(point, horizon)[0])

    def point(self, coordinates, horizon):
        """The point of the buckets' coordinates, moved into range."""
        values = self.buckets.values(coordinates)
        found = []
        for h, low, high in zip(self.hyperparameters, self.low, self.high):
            with np.errstate(divide="ignore", invalid="ignore"):
                on_scale = h.to_searched(values[h.name] / self._factors(h.name, horizon))
            found.append(np.clip(np.nan_to_num(on_scale, nan=low), low, high))
        return self.buckets.join(found)

    def slopes(self, observation):
        """`(derivatives, known)` of the loss along `modes` at an observation's point."""
        point = self.point(observation.coordinates, observation.horizon)
        values, derivatives = self._values(point, observation.horizon)
        of_values = {h.name: h.derivatives(values[h.name]) for h in self.hyperparameters}
        with np.errstate(all="ignore"):
            factors = self.buckets.join(derivatives) / self.buckets.join(of_values)
            found = observation.hypergradients * factors
        known = ~(np.isnan(found) @ (self.modes != 0))
        return np.nan_to_num(np.clip(found, -1e100, 1e100)) @ self.modes, known

    # --------------------------------------------------------------------------- where to look
    def levels(self, uniform):
        """Levels all over the ranges, of numbers between 0 and 1, `[n, hyperparameters]`."""
        found = self.low_levels + uniform * (self.high_levels - self.low_levels)
        return np.clip(found @ self.to_levels.T - self.shift, self.low, self.high)

    def constant(self, levels):
        """Points whose coordinates do not change in time, of levels `[…, hyperparameters]`."""
        return levels[..., self.buckets.owners]

    def clip(self, points):
        return np.clip(points, self.constant(self.low), self.constant(self.high))

    def offsets(self, points):
        """How far the levels of points are from the middle of the ranges, their ends at 1."""
        return points @ self.offset_map.T + self.offset

    def wiggles(self, number, rng):
        """Smooth changes in time, `[number, size]`."""
        return (
            0.5
            * (rng.standard_normal((number, len(self.mode_sizes))) * self.mode_sizes)
            @ (self.modes.T)
        )


def _kind(name, scale):
    if name in ("learning_rate", "weight_decay"):
        return name
    return "average" if scale == "complement" else "other"


def _alike(number):
    """Correlations of points at equal distances in time."""
    times = np.linspace(0, 1, number)
    return np.exp(-0.5 * np.square((times[:, None] - times) / SMOOTHNESS)) + 1e-6 * np.eye(number)
