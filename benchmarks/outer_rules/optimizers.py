"""Inner optimizers as pure functions whose learned numbers are arguments."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Optimizer(NamedTuple):
    """An inner optimizer.

    Args:
        names: Of its learned numbers, in the order of the columns of a schedule.
        slots: `weights -> slots`.
        update: `(numbers, gradients, slots, weights) -> (weights, slots)`.
    """

    names: tuple
    slots: Callable
    update: Callable


def clipped(gradients, norm):
    """The gradients, clipped to a global norm of `norm`."""
    squares = sum(jnp.sum(jnp.square(each)) for each in jax.tree.leaves(gradients))
    # The root has no derivative at zero.
    factor = jnp.minimum(1.0, norm / jnp.sqrt(squares + 1e-12))
    return jax.tree.map(lambda gradient: factor * gradient, gradients)


def sgd(global_clipnorm=1.0):
    """`keras_fds.optimizers.SGD`: v ← momentum v + g + weight_decay w;  w ← w − learning_rate v."""

    def update(numbers, gradients, velocities, weights):
        learning_rate, momentum, weight_decay = numbers
        velocities = jax.tree.map(
            lambda velocity, gradient, weight: (
                momentum * velocity + gradient + weight_decay * weight
            ),
            velocities,
            clipped(gradients, global_clipnorm),
            weights,
        )
        weights = jax.tree.map(
            lambda weight, velocity: weight - learning_rate * velocity, weights, velocities
        )
        return weights, velocities

    names = ("learning_rate", "momentum", "weight_decay")
    return Optimizer(names, lambda weights: jax.tree.map(jnp.zeros_like, weights), update)


def adamw(beta_2=0.99, epsilon=1e-6):
    """AdamW with Keras's decoupled decay: w ← (1 − learning_rate weight_decay) w − the Adam step.

    A learned `beta_1` changes in time, so the first moment's bias correction uses the product of
    all `beta_1` so far.
    """

    def slots(weights):
        zeros = jax.tree.map(jnp.zeros_like, weights)
        return {"first": zeros, "second": zeros, "decays": jnp.ones(2)}

    def update(numbers, gradients, slots, weights):
        learning_rate, beta_1, weight_decay = numbers
        decays = slots["decays"] * jnp.stack([beta_1, jnp.full_like(beta_1, beta_2)])
        first = jax.tree.map(
            lambda m, gradient: beta_1 * m + (1 - beta_1) * gradient, slots["first"], gradients
        )
        second = jax.tree.map(
            lambda v, gradient: beta_2 * v + (1 - beta_2) * jnp.square(gradient),
            slots["second"],
            gradients,
        )
        mean_part, square_part = 1 - decays

        def moved(weight, m, v):
            # Within the root, epsilon keeps the derivative at zero finite.
            step = (m / mean_part) / jnp.sqrt(v / square_part + epsilon**2)
            return weight - learning_rate * (step + weight_decay * weight)

        weights = jax.tree.map(moved, weights, first, second)
        return weights, {"first": first, "second": second, "decays": decays}

    return Optimizer(("learning_rate", "beta_1", "weight_decay"), slots, update)
