"""Checks the bound of the paper's Theorem 4.1 by simulation; ends with exit code 1 if it fails.

    python -m trainers.theorem_4_1 --config=configs/theorem_4_1.py

The theorem (Micaelli & Storkey, 2021): the hypergradient of step t has the mean μ_t, which changes
by at most ε per step, and the variance σ_t²; the noise of two steps has at most the correlation c.
Each bucket of W steps gives all its steps one estimate, the mean over the bucket. The mean squared
error over all steps is then at most

    σ² (1 + c (W − 1)) / W + ε² (W² − 1) / 12 ,    σ² the mean of σ_t²,

and σ² without sharing. Each random setting is simulated without and with correlated noise, and its
error is also computed exactly. A second table shows what the bound does not cover.
"""

import dataclasses

import numpy as np

from trainers import experiment

REQUIRED = ("config",)

# Simulated errors may differ from exact ones by so many standard errors: one check in two million.
_TOLERANCE = 5.0


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the theorem supposes of hypergradients.

    Args:
        steps: W, the length of a bucket.
        means: μ, float64 `[horizon]`.
        drift: ε, at least |μ_{t+1} − μ_t|.
        deviations: σ_t, float64 `[horizon]`.
        correlations: Correlation matrix of the noise, float64 `[horizon, horizon]`.
        correlation: c, at least all entries off its diagonal.
        words: What is special about it, for the table.
    """

    steps: int
    means: np.ndarray
    drift: float
    deviations: np.ndarray
    correlations: np.ndarray
    correlation: float
    words: str

    @property
    def horizon(self):
        return len(self.means)

    @property
    def noise(self):
        return float(np.sqrt(np.mean(self.deviations**2)))

    @property
    def is_extreme(self):
        """Whether the bound should hold with equality."""
        return self.words.startswith("steady, equal variances") and "decaying" not in self.words

    def exact_error(self):
        """The mean squared error of sharing, from means and covariances."""
        windows = np.arange(self.horizon).reshape(-1, self.steps)
        covariances = self.correlations * np.outer(self.deviations, self.deviations)
        noise = np.mean([covariances[np.ix_(w, w)].mean() for w in windows])
        return float(noise + self.means.reshape(windows.shape).var(axis=1).mean())

    def simulate(self, samples, generator):
        """`((error, its standard error) of sharing, the same without)`, of Gaussian noise."""
        root = np.linalg.cholesky(self.correlations + 1e-12 * np.eye(self.horizon))
        noise = generator.normal(size=(samples, self.horizon)) @ root.T * self.deviations
        found = (self.means + noise).reshape(samples, -1, self.steps)
        target = self.means.reshape(1, -1, self.steps)
        shared = np.square(found.mean(axis=2, keepdims=True) - target).mean(axis=(1, 2))
        unshared = np.square(noise).mean(axis=1)
        return tuple((e.mean(), e.std(ddof=1) / np.sqrt(samples)) for e in (shared, unshared))


def random_setting(generator, correlated):
    """A `Setting` within the conditions of the theorem.

    Args:
        generator: A `numpy.random.Generator`.
        correlated: Whether the noise of different steps is correlated, c from 0.02 to 0.95.
    """
    steps, buckets = int(generator.integers(2, 51)), int(generator.integers(2, 9))
    horizon = steps * buckets
    noise = 10 ** generator.uniform(-1, 1)
    drift = noise * 10 ** generator.uniform(-2.5, 0)
    course = str(generator.choice(["steady", "random", "none"]))
    changes = {
        "steady": np.full(horizon, drift),
        "random": generator.uniform(-drift, drift, horizon),
        "none": np.zeros(horizon),
    }[course]
    equal = bool(generator.integers(2))
    deviations = np.full(horizon, noise) if equal else noise * generator.uniform(0, 2, horizon)
    words = f"{course}, {'equal' if equal else 'unequal'} variances"
    correlation, correlations = 0.0, np.eye(horizon)
    if correlated:
        correlation = float(generator.uniform(0.02, 0.95))
        shape = str(generator.choice(["same", "decaying"]))
        distance = np.abs(np.subtract.outer(np.arange(horizon), np.arange(horizon)))
        correlations = correlation ** (np.minimum(distance, 1) if shape == "same" else distance)
        words += f", {shape} correlation"
    means = np.cumsum(changes)
    return Setting(steps, means, drift, deviations, correlations, correlation, words)


def check(setting, samples, generator):
    """Simulates a setting and compares it with the theorem.

    Args:
        setting: A `Setting`.
        samples: Simulated seeds.
        generator: A `numpy.random.Generator`.

    Returns:
        `(row, violations)`: the numbers of the table, and sentences about what does not hold.
    """
    from keras_fds import noise

    bound = noise.sharing_bound(setting.noise, setting.drift, setting.correlation, setting.steps)
    exact = setting.exact_error()
    (shared, error), (unshared, unshared_error) = setting.simulate(samples, generator)
    best = noise.best_steps(setting.noise, setting.drift, setting.correlation)
    lengths = np.arange(1, int(best) + 100)
    bounds = noise.sharing_bound(setting.noise, setting.drift, setting.correlation, lengths)
    violations = []
    if exact > bound * (1 + 1e-9):
        violations.append(f"the exact error {exact:.6g} is above the bound {bound:.6g}")
    if setting.is_extreme and abs(exact / bound - 1) > 1e-9:
        violations.append(f"the exact error {exact:.6g} should equal the bound {bound:.6g}")
    if shared > bound + _TOLERANCE * error:
        violations.append(f"the simulated error {shared:.6g} is above the bound {bound:.6g}")
    if abs(shared - exact) > _TOLERANCE * error:
        violations.append(f"the simulated error {shared:.6g} is not the exact one {exact:.6g}")
    if abs(unshared - setting.noise**2) > _TOLERANCE * unshared_error:
        violations.append(f"without sharing the error is {unshared:.6g}, not the variance")
    if abs(lengths[np.argmin(bounds)] - best) >= 1:
        violations.append(f"the bound is least at {lengths[np.argmin(bounds)]}, not at {best:.2f}")
    row = {
        "W": setting.steps,
        "T": setting.horizon,
        "sigma": setting.noise,
        "epsilon": setting.drift,
        "c": setting.correlation,
        "unshared": unshared,
        "simulated": shared,
        "exact": exact,
        "bound": float(bound),
        "W*": best,
        "": setting.words,
    }
    return row, violations


def not_covered():
    """What the bound does not cover: `[(words, what is there, what the bound says), …]`.

    Both numbers are exact. In each, the first one is the greater.
    """
    from keras_fds.noise import best_steps, sharing_bound

    found = []
    correlations = np.array([[1.0, -0.9], [-0.9, 1.0]])
    negative = Setting(2, np.zeros(2), 0.0, np.array([1.0, 0.1]), correlations, -0.9, "")
    found.append(
        (
            "c < 0 and unequal variances: error for W = 2, sigma 1 and 0.1, c = -0.9",
            negative.exact_error(),
            float(sharing_bound(negative.noise, 0.0, -0.9, 2)),
        )
    )
    ramp = np.arange(3.0)
    found.append(
        (
            "W does not divide T: error of buckets of 1 and 2 steps, W = 1.5, epsilon 1, no noise",
            float(np.mean((ramp - [0.0, 1.5, 1.5]) ** 2)),
            float(sharing_bound(0.0, 1.0, 0.0, 1.5)),
        )
    )
    found.append(
        (
            "sharing is not always better: the authors' W = 40, sigma 0.25, epsilon 0.08, steady, "
            "against sigma^2",
            float(sharing_bound(0.25, 0.08, 0.0, 40)),
            0.25**2,
        )
    )
    found.append(
        (
            "W* = (6 sigma^2 / epsilon^2)^(1/3) is for c = 0: bound there, and at the best W, for "
            "c = 0.9, sigma 1, epsilon 0.1",
            float(sharing_bound(1.0, 0.1, 0.9, best_steps(1.0, 0.1))),
            float(sharing_bound(1.0, 0.1, 0.9, best_steps(1.0, 0.1, 0.9))),
        )
    )
    return found


def theorem_4_1(settings=20, samples=4000, seed=0, tell=print):
    """Checks random settings, each without and with correlated noise, and prints the table.

    Args:
        settings: Number of random settings. Defaults to `20`.
        samples: Simulated seeds of each. Defaults to `4000`.
        seed: Of all that is random. Defaults to `0`.
        tell: Called with each line. Defaults to `print`.

    Returns:
        A list of sentences, one for each violation; empty when the theorem holds.

    Raises:
        ValueError: There are fewer than one setting or a hundred samples.

    Example:

    >>> theorem_4_1(settings=2, samples=1000, tell=lambda line: None)
    []
    """
    if not (settings >= 1 and samples >= 100):
        raise ValueError(
            "`settings` must be 1 or more, `samples` 100 or more. "
            f"Received: settings={settings}, samples={samples}"
        )
    generator = np.random.default_rng(seed)
    violations = []
    for correlated in (False, True):
        tell(f"\n{'With' if correlated else 'Without'} correlated noise\n")
        for k in range(settings):
            row, found = check(random_setting(generator, correlated), samples, generator)
            if k == 0:
                tell("".join(_cell(name, name) for name in row))
            tell("".join(_cell(name, value) for name, value in row.items()))
            violations += [f"Setting {k}, {row['']}: {sentence}." for sentence in found]
    tell("\nNot covered by the bound\n")
    for words, there, said in not_covered():
        tell(f"{there:.4g} > {said:.4g}  {words}")
        if not there > said * (1 + 1e-9):
            violations.append(f"{words}: {there:.4g} is not above {said:.4g}.")
    return violations


def _cell(name, value):
    if name == "":
        return f"  {value}"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.rjust(5 if name in ("W", "T") else 11)


def main():
    """The program."""
    config = experiment.CONFIG.value
    violations = theorem_4_1(config.settings, config.samples, config.seed)
    if violations:
        raise SystemExit("\nThe theorem does not hold:\n" + "\n".join(violations))
    print("\nThe bound holds in every setting.")


if __name__ == "__main__":
    experiment.run(main, required=REQUIRED)
