"""Forward or adjoint mode: which one an unroll uses, and why.

`"auto"` goes by the number of tangents, the horizon, the size of the state and the memory allowed,
with costs as measured in docs/benchmarks.md. It does not time the model at hand: the modes differ
in the last digits, and by a stopwatch two searches of one seed could take different ones.
"""

import numpy as np
import tensorflow as tf

from keras_fds import _data
from keras_fds._adjoint import Adjoint
from keras_fds._unroll import Unroll

MODES = ("auto", "forward", "adjoint")
DEFAULT_MEMORY = 2**30
_MEBIBYTE = 2**20
_NOT_JOINABLE = (
    "batches whose shapes may differ cannot be joined, to be replayed; where they do not, "
    "differentiation='adjoint' is possible."
)

# Time of an inner step in plain training steps, see docs/benchmarks.md. A tangent costs 1.3 to 2.2;
# 1.6 with three of them on a small network, about the number at which the modes cost the same.
_A_TANGENT, _ADJOINT, _ADJOINT_FROM_CHECKPOINTS = 1.6, 4.0, 5.0


def make_unroll(model, batches, horizon, differentiation, adjoint_memory):
    """The unroll for a model, in the mode asked for.

    Args:
        model: A model compiled with a `HyperOptimizer`.
        batches: The training data's `ArrayBatches` or `DatasetBatches`.
        horizon: Number of inner steps, the greatest one if there are several.
        differentiation: `"forward"`, `"adjoint"` or `"auto"`.
        adjoint_memory: Bytes that adjoint mode may keep.

    Returns:
        `(unroll, reason)`: an `Unroll` or an `Adjoint`, and a sentence that says why.

    Raises:
        ValueError: Adjoint mode cannot do what is asked for.
    """
    if differentiation not in MODES:
        raise ValueError(
            f"`differentiation` must be 'auto', 'forward' or 'adjoint'. "
            f"Received: differentiation={differentiation!r}"
        )
    is_number = isinstance(adjoint_memory, (int, float)) and not isinstance(adjoint_memory, bool)
    if not is_number or not adjoint_memory > 0:
        raise ValueError(
            "`adjoint_memory` must be a positive number of bytes. "
            f"Received: adjoint_memory={adjoint_memory!r}"
        )
    if differentiation == "forward":
        return Unroll(model, batches.spec), "Forward mode, as asked for."
    obstacle = _obstacle(model.optimizer, batches)
    if obstacle and differentiation == "adjoint":
        raise ValueError(f"{obstacle} Use differentiation='forward'.")
    if obstacle:
        return Unroll(model, batches.spec), f"Forward mode: {obstacle}"
    if differentiation == "auto" and not _joinable(batches):
        return Unroll(model, batches.spec), f"Forward mode: {_NOT_JOINABLE}"
    kept_batches = batches.bytes_to_keep * horizon
    adjoint = Adjoint(model, batches.spec, adjoint_memory - kept_batches)
    if differentiation == "adjoint":
        adjoint.check_memory(horizon)
        return adjoint, "Adjoint mode, as asked for."
    backward, reason = _cheaper(adjoint, horizon)
    return (adjoint if backward else Unroll(model, batches.spec)), reason


def _obstacle(optimizer, batches):
    """What keeps adjoint mode from being possible, a sentence, or nothing."""
    if optimizer.tangent_clipvalue is not None:
        return "Tangents, which `tangent_clipvalue` is to clip, exist in forward mode only."
    if optimizer.pruning:
        return "Tangents, which `pruning` is to skip, exist in forward mode only."
    specs = [spec for spec in tf.nest.flatten(batches.spec) if spec is not None]
    if not all(isinstance(spec, tf.TensorSpec) for spec in specs):
        return "Sparse and ragged batches cannot be replayed."
    return ""


def _joinable(batches):
    """Whether batches are known to differ in their number of examples only."""
    specs = [spec for spec in tf.nest.flatten(batches.spec) if spec is not None]
    return all(spec.shape[1:].is_fully_defined() for spec in specs)


def _cheaper(adjoint, horizon):
    """`(adjoint is cheaper, why)`."""
    optimizer = adjoint.hyper_optimizer
    opening = np.concatenate(
        [np.zeros(0), *(h.opening_steps(horizon) for h in optimizer.hyperparameters)]
    )
    forward = 1 + _A_TANGENT * np.sum(1 - opening / horizon)
    size = _data.size_in_bytes(adjoint.step.variables)
    states, keeps_all = adjoint.states_kept(horizon)
    backward = _ADJOINT if keeps_all else _ADJOINT_FROM_CHECKPOINTS
    needed, allowed = states * size / _MEBIBYTE, adjoint.memory / _MEBIBYTE
    if needed > allowed:
        return False, (
            f"Forward mode: adjoint mode would keep {needed:.0f} MiB of {allowed:.0f} that "
            "`adjoint_memory` allows."
        )
    better, worse = ("Adjoint", "forward") if backward < forward else ("Forward", "adjoint")
    low, high = sorted((backward, forward))
    return backward < forward, (
        f"{better} mode: an inner step costs about {low:.1f} plain training steps, {high:.1f} in "
        f"{worse} mode."
    )
