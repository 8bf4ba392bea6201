"""Outer update rules: hypergradients in, new bucket values out.

A rule sees all buckets of all hyperparameters as one vector and keeps its state in a
dictionary of float64 arrays, so that whoever owns the state can save it.
"""

import keras
import numpy as np


@keras.saving.register_keras_serializable("keras_fds")
class SignDescent:
    """Steps along the sign of the hypergradient, halved when the sign flips.

    For bucket k with value λ_k, step size δ_k and hypergradient h_k:

        δ_k ← shrink · δ_k   if sign(h_k) differs from the previous sign (both not zero)
        λ_k ← clip(λ_k − sign(h_k) δ_k, minimum, maximum)

    NaN counts as sign 0. The paper has no more than that. With `tolerance` set, a point whose
    validation loss is not finite, or worse than the best one's by more than that fraction, is
    not continued from: the search returns to the best point, halves every step size, and
    takes from there the step that the best point's hypergradients ask for.

    Args:
        shrink: Factor on a step size when its sign flips. Defaults to `0.5`.
        tolerance: Relative worsening of the validation loss that is still accepted. `None`
            gives the paper's rule, which can diverge. Defaults to `0.02`.

    Raises:
        ValueError: When `shrink` is outside (0, 1) or `tolerance` is negative.

    Example:

    >>> optimizer = keras_fds.HyperOptimizer(
    ...     keras_fds.optimizers.SGD(),
    ...     hyperparameters=[keras_fds.Hyperparameter("learning_rate", num_buckets=7)],
    ...     outer=keras_fds.outer.SignDescent(tolerance=None),
    ... )

    Reference: Micaelli & Storkey (2021), section 5 and its public settings.
    """

    # The search has converged when every step is below this fraction of its value.
    converged_fraction = 0.05

    def __init__(self, shrink=0.5, tolerance=0.02):
        if not (isinstance(shrink, (int, float)) and 0 < shrink < 1):
            raise ValueError(f"`shrink` must lie in (0, 1). Received: shrink={shrink!r}")
        is_number = isinstance(tolerance, (int, float))
        if tolerance is not None and not (is_number and tolerance >= 0):
            raise ValueError(
                f"`tolerance` must be None or not negative. Received: tolerance={tolerance!r}"
            )
        self.shrink = shrink
        self.tolerance = tolerance

    def initial_state(self, values, step_sizes):
        """The state before the first outer step.

        Args:
            values: Start values, float64 `[total_buckets]`.
            step_sizes: First step sizes, float64 `[total_buckets]`.

        Returns:
            Dictionary of float64 arrays; `values` and `step_sizes` are among them.
        """
        zeros = np.zeros_like(values)
        return {
            "values": np.array(values, "float64"),
            "step_sizes": np.array(step_sizes, "float64"),
            "signs": zeros,
            "best_values": np.array(values, "float64"),
            "best_signs": zeros,
            "best_loss": np.array(np.inf),
        }

    def update(self, state, hypergradients, loss, minimum, maximum):
        """One outer step.

        Args:
            state: What `initial_state` or the last `update` returned; not changed.
            hypergradients: Float64 `[total_buckets]`, measured at `state["values"]`.
            loss: Validation loss measured there.
            minimum, maximum: The range of every value, float64 `[total_buckets]`.

        Returns:
            The new state.
        """
        state = dict(state)
        loss = loss if np.isfinite(loss) else np.inf
        best = float(state["best_loss"])
        signs = np.nan_to_num(np.sign(hypergradients))
        if self.tolerance is None or self._acceptable(loss, best):
            flipped = signs * state["signs"] < 0
            state["step_sizes"] = np.where(flipped, self.shrink, 1.0) * state["step_sizes"]
        else:
            state["step_sizes"] = self.shrink * state["step_sizes"]
            if np.isfinite(best):
                state["values"], signs = state["best_values"], state["best_signs"]
        if loss < best:
            state.update(best_values=state["values"], best_signs=signs, best_loss=np.array(loss))
        state["signs"] = signs
        state["values"] = np.clip(state["values"] - signs * state["step_sizes"], minimum, maximum)
        return state

    def _acceptable(self, loss, best):
        if not (np.isfinite(loss) and np.isfinite(best)):
            return bool(np.isfinite(loss))
        return loss <= best + self.tolerance * abs(best)

    def converged(self, state, minimum, maximum):
        """Whether every step size is below 5% of its value.

        A value that its last sign holds at an end of its range counts as settled.
        """
        values, signs = state["values"], state["signs"]
        small = state["step_sizes"] < self.converged_fraction * np.abs(values)
        held = ((values <= minimum) & (signs > 0)) | ((values >= maximum) & (signs < 0))
        return bool(np.all(small | held))

    def get_config(self):
        return {"shrink": self.shrink, "tolerance": self.tolerance}

    @classmethod
    def from_config(cls, config):
        return cls(**config)
