"""The paper's outer update rule."""

import keras
import numpy as np

from keras_fds.outer.base import Rule, fraction


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

    def __init__(self, shrink=0.5):
        self.shrink = fraction("shrink", shrink)

    def initial_state(self, values, step_sizes):
        """The state before the first outer step.

        Args:
            values: Start values, float64 `[total_buckets]`.
            step_sizes: First step sizes, float64 `[total_buckets]`.

        Returns:
            Dictionary of float64 arrays; `values` and `step_sizes` are among them.
        """
        return {
            "values": np.array(values, "float64"),
            "step_sizes": np.array(step_sizes, "float64"),
            "signs": np.zeros(np.shape(values)),
            "measured": np.array(0.0),  # The number of losses so far.
            "best_values": np.array(values, "float64"),
            "best_loss": np.array(0.0),
        }

    def classify(self, state, measurement, ranges):
        """The verdict on a measurement: `"best"` so far, `"accepted"` or `"rejected"`."""
        if measurement.broke_down:
            return "rejected"
        is_best = not state["measured"] or measurement.loss < state["best_loss"]
        return "best" if is_best else "accepted"

    def update(self, state, measurement, ranges):
        """One outer step.

        Args:
            state: What `initial_state` or the last `update` returned. It is not changed.
            measurement: A `Measurement` at `state["values"]`.
            ranges: The `Ranges` of the coordinates.

        Returns:
            The new state.
        """
        state, values = dict(state), state["values"]
        if self.classify(state, measurement, ranges) == "best":
            state.update(best_values=values, best_loss=np.array(measurement.loss))
        state["measured"] = state["measured"] + (not measurement.broke_down)
        signs = np.nan_to_num(np.sign(measurement.hypergradients))
        flipped = signs * state["signs"] < 0
        state["step_sizes"] = np.where(flipped, self.shrink, 1.0) * state["step_sizes"]
        state["signs"] = signs
        moved = values - signs * state["step_sizes"]
        state["values"] = np.clip(moved, ranges.minimum, ranges.maximum)
        return state

    def get_config(self):
        return {"shrink": self.shrink}
