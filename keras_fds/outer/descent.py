"""Descent along hypergradients: how many values at once are moved."""

import keras
import numpy as np

from keras_fds.outer.base import Proposal, Rule, fraction

# Parts of the horizon, and the part of the budget that is spent when the next one follows.
LADDER = (0.1, 0.25), (0.3, 0.5), (1.0, np.inf)


@keras.saving.register_keras_serializable("keras_fds")
class Descent(Rule):
    """Adam on hypergradients: every value moves by about its step size in every outer step.

    With the hypergradients h of a hyperparameter in outer step n, g = h / rms(h) in units of their
    root mean square, so an outer step whose hypergradients explode counts no more than others:

        m ← β₁ m + (1 − β₁) g,    v ← β₂ v + (1 − β₂) g²
        u ← clip(u − δ · m / (1 − β₁ⁿ) / √(v / (1 − β₂ⁿ)), minimum, maximum)

    u are the coordinates, δ the `step_size` of the hyperparameter. Where signs alternate, m and so
    the steps shrink. NaN and infinities count as zero. From a value at which training broke down it
    goes back halfway. It is what `BayesianOptimization` moves vectors by; by itself it moves all.

    Within a budget, outer steps go over a tenth of the horizon until a quarter of it is spent, over
    three tenths until half of it is, then over the whole horizon: short trainings are cheap, and of
    many values each tells much. The last outer step is a plain training, when the budget allows no
    more.

    Args:
        mean_decay: β₁. Defaults to `0.9`.
        square_decay: β₂. Defaults to `0.99`.

    Raises:
        ValueError: When a decay is outside (0, 1).

    Example:

    >>> outer = keras_fds.outer.Descent()

    Reference: Kingma & Ba, "Adam: a method for stochastic optimization" (2015).
    """

    chooses_horizons = True

    def __init__(self, mean_decay: float = 0.9, square_decay: float = 0.99) -> None:
        self.mean_decay = fraction("mean_decay", mean_decay)
        self.square_decay = fraction("square_decay", square_decay)

    def propose(self, observations, problem):
        done, computes = len(observations), True
        if done and all(observation.broke_down for observation in observations):
            return None
        if problem.horizons is not None:
            if done == len(problem.horizons):
                return None
            horizon = problem.horizons[done]
        else:
            spent = problem.spent(observations)
            left = problem.budget - spent
            if done and (left < 1 - 1e-9 or observations[-1].hypergradients is None):
                return None
            part = next(part for part, end in LADDER if spent < end * problem.budget)
            most_buckets = max((h.num_buckets for h in problem.buckets.hyperparameters), default=1)
            horizon = max(problem.steps(part), most_buckets)
            reserve = 1.0 if horizon < problem.horizon else 0.0  # Of a plain training at the end.
            computes = not done or left >= problem.price_of(horizon, True) + reserve
            if not computes:
                horizon = problem.horizon
        return Proposal(self._moved(observations, problem), horizon, computes)

    def _moved(self, observations, problem):
        """The coordinates after the observations."""
        coordinates = sound = problem.start
        steps, (minimum, maximum) = problem.buckets.first_steps(), problem.buckets.ranges
        mean, square, seen = np.zeros(len(steps)), np.zeros(len(steps)), 0
        for observation in observations:
            coordinates = observation.coordinates
            if observation.broke_down:
                coordinates = (sound + coordinates) / 2
                continue
            sound = coordinates
            if observation.hypergradients is None:
                continue
            seen += 1
            gradients = problem.buckets.in_own_units(observation.hypergradients)
            mean = self.mean_decay * mean + (1 - self.mean_decay) * gradients
            square = self.square_decay * square + (1 - self.square_decay) * np.square(gradients)
            size = np.sqrt(square / (1 - self.square_decay**seen))
            direction = mean / (1 - self.mean_decay**seen) / np.where(size > 0, size, 1.0)
            coordinates = np.clip(coordinates - steps * direction, minimum, maximum)
        return coordinates

    def get_config(self):
        return {"mean_decay": self.mean_decay, "square_decay": self.square_decay}
