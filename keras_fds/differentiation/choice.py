"""Forward or reverse mode: which one is used, and why.

`"auto"` goes by the number of tangents, the horizon, the size of the state and the memory allowed,
with costs as measured in docs/benchmarks.md. It does not time the model at hand: the modes differ
in the last digits, so with a stopwatch two searches of one seed could end differently.
"""

import tensorflow as tf

from keras_fds.differentiation.forward import Forward
from keras_fds.differentiation.reverse import Reverse
from keras_fds.numbers import number

_MEBIBYTE = 2**20
_NOT_JOINABLE = (
    "batches whose shapes may differ cannot be joined and replayed. If they do not differ, "
    "differentiation='reverse' is possible."
)


def choose_mode(model, batches, horizon, differentiation, memory=None, replicas=None):
    """`(mode, reason)`: the mode that is asked for, bound to a model, and a sentence that says why.

    Args:
        batches: The training data's `ArrayBatches` or `DatasetBatches`.
        horizon: Number of inner steps; the greatest one of several.
        differentiation: `"auto"`, `"forward"`, `"reverse"` (or `"adjoint"`), or a mode.
        memory: Bytes that reverse mode may keep; `None` is the default of `Reverse`.
        replicas: See `Mode.bind`.
    """
    if memory is not None:
        number("reverse_memory", memory, above=0)
    optimizer = model.optimizer
    forward = Forward(optimizer.tangents_per_pass, optimizer.tangent_clipvalue)
    reverse = Reverse() if memory is None else Reverse(memory)
    clips = ""
    if optimizer.tangent_clipvalue is not None:
        clips = "`tangent_clipvalue` clips tangents, which exist in forward mode only."
    by_name = {"auto": None, "forward": forward, "reverse": reverse, "adjoint": reverse}
    if isinstance(differentiation, str) and differentiation in by_name:
        asked_for = by_name[differentiation]
    elif hasattr(differentiation, "bind") and not isinstance(differentiation, type):
        asked_for = differentiation
        if memory is not None:
            raise ValueError(
                "`reverse_memory` is for differentiation='reverse' or 'auto'; a mode has its own "
                f"`memory`. Received: reverse_memory={memory}, differentiation={differentiation!r}"
            )
    else:
        raise ValueError(
            "`differentiation` must be 'auto', 'forward', 'reverse' or a mode, such as "
            f"keras_fds.differentiation.Forward(). Received: differentiation={differentiation!r}"
        )
    if asked_for is not None:
        obstacle = asked_for.supports(batches) or (asked_for.name == "reverse" and clips)
        if obstacle:
            raise ValueError(f"{obstacle} Use differentiation='forward'.")
        mode = asked_for.bind(model, batches.spec, replicas)
        mode.check_batches(batches)
        mode.check_memory(batches, horizon)
        return mode, f"{mode.name.capitalize()} mode, as asked for."
    obstacle = clips or reverse.supports(batches)
    if not obstacle and not _joinable(batches):
        obstacle = _NOT_JOINABLE
    if obstacle:
        mode, reason = forward.bind(model, batches.spec, replicas), f"Forward mode: {obstacle}"
    else:
        both = (each.bind(model, batches.spec, replicas) for each in (forward, reverse))
        mode, reason = _cheaper(*both, batches, horizon)
    mode.check_batches(batches)
    if mode.name == "forward":
        try:
            mode.check_memory(batches, horizon)
        except ValueError as error:
            raise ValueError(f"{error} {reason}") from error
    return mode, reason


def _joinable(batches):
    """Whether batches are known to differ in their number of examples only."""
    specs = [spec for spec in tf.nest.flatten(batches.spec) if spec is not None]
    return all(spec.shape[1:].is_fully_defined() for spec in specs)


def _cheaper(forward, reverse, batches, horizon):
    """`(the cheaper mode, why)`."""
    needed, allowed = reverse.memory_needed(batches, horizon)
    if needed > allowed:
        return forward, (
            f"Forward mode: reverse mode would keep {needed / _MEBIBYTE:.0f} MiB, and its `memory` "
            f"allows {allowed / _MEBIBYTE:.0f}."
        )
    better, worse = sorted([reverse, forward], key=lambda mode: mode.cost(horizon))
    return better, (
        f"{better.name.capitalize()} mode: an inner step costs about {better.cost(horizon):.1f} "
        f"plain training steps, {worse.cost(horizon):.1f} in {worse.name} mode."
    )
