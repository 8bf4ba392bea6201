"""Independent ways to a hypergradient: closed form, reverse mode, finite differences."""

import numpy as np
import tensorflow as tf

from keras_fds.differentiation.forward import Forward


def quadratic_hypergradients(hessian, centre, start, validation, schedules, horizon):
    """Closed form for SGD in the paper's form on a quadratic, by products of matrices.

    The training loss is (w−c)ᵀH(w−c)/2, so a step is affine in the state s = (w, v),
    s_{t+1} = M_t s_t + b_t, and the derivative of the end state with respect to a value of
    step t is the product of all later M times the step's own derivative.

    Args:
        hessian, centre, start: H `[n, n]`, c `[n]` and w_0 `[n]`.
        validation: Maps w_T to the gradient of the validation loss, `[n]`.
        schedules: `{"learning_rate": values, "momentum": values, "weight_decay": values}`.
        horizon: Number of steps T.

    Returns:
        `{name: array [num_buckets]}`, means over the steps of each bucket.
    """
    n = len(start)
    identity, zeros = np.eye(n), np.zeros((n, n))
    bucket = {k: [len(v) * t // horizon for t in range(horizon)] for k, v in schedules.items()}
    state = np.concatenate([start, np.zeros(n)])
    maps = []
    sources = []
    for t in range(horizon):
        a, b, x = (
            schedules[name][bucket[name][t]]
            for name in ("learning_rate", "momentum", "weight_decay")
        )
        velocity_map = np.hstack([hessian + x * identity, b * identity])
        velocity_offset = -hessian @ centre
        matrix = np.vstack([np.hstack([identity, zeros]) - a * velocity_map, velocity_map])
        w, v = state[:n], state[n:]
        new_velocity = velocity_map @ state + velocity_offset
        maps.append(matrix)
        sources.append(
            {
                "learning_rate": np.concatenate([-new_velocity, np.zeros(n)]),
                "momentum": np.concatenate([-a * v, v]),
                "weight_decay": np.concatenate([-a * w, w]),
            }
        )
        state = matrix @ state + np.concatenate([-a * velocity_offset, velocity_offset])
    cotangent = np.concatenate([validation(state[:n]), np.zeros(n)])
    result = {name: np.zeros(len(values)) for name, values in schedules.items()}
    for t in reversed(range(horizon)):
        for name in schedules:
            result[name][bucket[name][t]] += cotangent @ sources[t][name]
        cotangent = maps[t].T @ cotangent
    return {
        name: total / np.bincount(bucket[name], minlength=len(total))
        for name, total in result.items()
    }


def reverse_mode_hypergradients(unroll, batches, validation_batches):
    """One `tf.GradientTape` around the whole unroll, through the same pure steps.

    Args:
        unroll: A bound `keras_fds.differentiation.Forward` that was reset.
        batches: List of training batches; their number is the horizon.
        validation_batches: List of validation batches.

    Returns:
        Two float64 `[total_buckets]`, means over the steps of each bucket: with the model in
        inference mode and in training mode for the validation loss.
    """
    model, optimizer, hyper_optimizer = (
        unroll.step.model,
        unroll.step.optimizer,
        unroll.hyper_optimizer,
    )
    horizon, start = len(batches), hyper_optimizer.coordinates

    @tf.function(autograph=False)
    def compute():
        state = [
            [tf.identity(v) for v in variables]
            for variables in (
                model.weights,
                model.statistics,
                model.counters,
                optimizer.slots,
                optimizer.counters,
            )
        ]
        weights, statistics, counters, slots, optimizer_counters = state
        values = tf.constant(start)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(values)
            for t, batch in enumerate(batches):
                rows = hyper_optimizer.buckets.shares(t, horizon)
                hyperparameters = {
                    name: values[lower]
                    if fraction is None
                    else (1 - fraction) * values[lower] + fraction * values[upper]
                    for name, (lower, upper, fraction) in rows.items()
                }
                of_model = {name: hyperparameters.pop(name) for name in model.places}
                (gradients, statistics), (_, _, counters, slices) = model.gradients(
                    weights, statistics, counters, of_model, batch
                )
                (weights, slots), optimizer_counters = optimizer.update(
                    weights,
                    slots,
                    optimizer_counters,
                    hyperparameters,
                    gradients,
                    slices,
                    model.connected,
                )
            losses = []
            for training in (False, True):
                loss = 0.0
                number = 0
                after = counters
                for batch in validation_batches:
                    part, _, _, after = model.validation_loss(
                        weights, statistics, after, batch, training
                    )
                    size = len(tf.nest.flatten(batch[0])[0])
                    loss, number = loss + part * size, number + size
                losses.append(loss / number)
        return [tape.gradient(loss, values) for loss in losses]

    lengths = [h.bucket_lengths(horizon) for h in hyper_optimizer.hyperparameters]
    return [gradient.numpy() / np.concatenate(lengths) for gradient in compute()]


def finite_difference_hypergradients(loss_at, values, lengths, step=1e-5):
    """Central differences of `loss_at(values)`, divided by the buckets' lengths."""
    result = np.zeros(len(values))
    for position in range(len(values)):
        ends = []
        for sign in (1, -1):
            moved = np.array(values)
            moved[position] += sign * step
            ends.append(loss_at(moved))
        result[position] = (ends[0] - ends[1]) / (2 * step * lengths[position])
    return result


def measured(mode, source, num_batches, training=False):
    """`(validation loss, hypergradients)`, the latter by coordinates, means over bucket's steps."""
    loss, _ = mode.validate(source, num_batches, training)
    derivatives = mode.buckets.derivatives(mode.hyper_optimizer.coordinates)
    return loss, mode.hypergradients() * derivatives / mode.buckets.lengths(mode.horizon)


def forward_and_differences(model, train, validation, training=False, step=1e-5):
    """Hypergradients of one unroll forward, and by central differences with Richardson's rule.

    Args:
        model: Compiled with a `keras_fds.HyperOptimizer`; it starts from its present weights.
        train, validation: `keras_fds.data` batches; the number of the first is the horizon.
        training: Mode of the model for the validation loss.
        step: Of the differences, in coordinates.

    Returns:
        Two dictionaries `{name: float64 [num_buckets]}`.
    """
    unroll = Forward().bind(model, train.spec)
    start = [variable.numpy() for variable in model.variables]
    optimizer, horizon = model.optimizer, train.num_batches
    values = optimizer.coordinates

    def run(moved):
        for variable, value in zip(model.variables, start):
            variable.assign(value)
        optimizer.coordinates = moved
        unroll.reset(horizon)
        assert unroll.run(train.start(), 0, 0, horizon) == (horizon, True)
        return measured(unroll, validation.start(), validation.num_batches, training)

    forward = run(values)[1]
    lengths = optimizer.buckets.lengths(horizon)
    wide, narrow = (
        finite_difference_hypergradients(lambda v: run(v)[0], values, lengths, s)
        for s in (2 * step, step)
    )
    run(values)
    return optimizer.buckets.split(forward), optimizer.buckets.split((4 * narrow - wide) / 3)
