"""The paper's outer update rule."""

import keras
import numpy as np

from keras_fds.outer.base import Proposal, Rule, fraction


@keras.saving.register_keras_serializable("keras_fds")
class SignDescent(Rule):
    """The paper's rule: steps along the sign of the hypergradient, halved when the sign flips.

    For bucket k with value λ_k, step size δ_k and hypergradient h_k:

        δ_k ← shrink · δ_k   if sign(h_k) differs from the previous sign (both not zero)
        λ_k ← clip(λ_k − sign(h_k) δ_k, minimum, maximum)

    NaN counts as sign 0. Only the range limits the steps: the rule can overshoot and diverge.

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

    def __init__(self, shrink: float = 0.5) -> None:
        self.shrink = fraction("shrink", shrink)

    def propose(self, observations, problem):
        done = len(observations)
        broke_down = [observation.broke_down for observation in observations]
        if done == len(problem.horizons) or (broke_down and all(broke_down)):
            return None
        minimum, maximum = problem.buckets.ranges
        values, step_sizes = problem.start, problem.buckets.first_steps()
        signs = np.zeros(len(values))
        for observation in observations:
            before, signs = signs, np.zeros(len(values))
            if not observation.broke_down:
                signs = np.nan_to_num(np.sign(observation.hypergradients))
            step_sizes = np.where(signs * before < 0, self.shrink, 1.0) * step_sizes
            values = np.clip(values - signs * step_sizes, minimum, maximum)
        return Proposal(values, problem.horizons[done])

    def get_config(self):
        return {"shrink": self.shrink}
