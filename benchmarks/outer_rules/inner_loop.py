"""An inner loop: trainings with a schedule, their validation loss, hypergradients of each step.

Reverse mode through `lax.scan`: the states of all steps are kept, values within a step are computed
again.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

HYPERGRADIENTS_COST = 4.0  # A pass with hypergradients, in plain trainings of its horizon.


class Split(NamedTuple):
    """Indices of the pool's examples for training, and of those held out for validation."""

    train: np.ndarray
    validation: np.ndarray


class Measured(NamedTuple):
    """What a training measured.

    Args:
        loss: Validation loss.
        error: Its standard error.
        broke_down: Whether `keras_fds.fit` would have given the training up.
        hypergradients: The derivatives of the loss by the schedule, float64 `[horizon, numbers]`;
            `None` after a plain training.
    """

    loss: float
    error: float
    broke_down: bool
    hypergradients: np.ndarray | None = None


class Tested(NamedTuple):
    """The results of trainings, arrays with one number per training."""

    validation_loss: np.ndarray
    test_loss: np.ndarray
    test_accuracy: np.ndarray


class InnerLoop:
    """Trainings of one model on one data set.

    A schedule is an array `[horizon, numbers]`, a row for each inner step.

    Args:
        model: A `models.Model`.
        optimizer: An `optimizers.Optimizer`.
        data: A `data.Data`.
        batch_size: Examples in a batch.
        horizon: Inner steps of a whole training.
        num_validation: Examples of the pool that are held out.
    """

    def __init__(self, model, optimizer, data, batch_size, horizon, num_validation):
        self.model, self.optimizer, self.data = model, optimizer, data
        self.batch_size, self.horizon = batch_size, horizon
        self.num_validation = num_validation
        # Arrays are arguments, so that no compiled program holds a copy of its own.
        self._arrays = jax.tree.map(jnp.asarray, (data.pool, data.test))
        self._loss = jax.jit(self._validated)
        self._hypergradients = jax.jit(jax.value_and_grad(self._validated, has_aux=True))
        self._test = jax.jit(jax.vmap(self._tested, in_axes=(None, 0, None, None)))

    def split(self, seed):
        """The `Split` of a seed: every search holds out examples of its own."""
        order = np.random.default_rng([seed, 3]).permutation(len(self.data.pool.labels))
        return Split(order[self.num_validation :], order[: self.num_validation])

    def measure(self, schedule, key, split):
        """What a plain training measures, `Measured`."""
        loss, (error, losses) = self._loss(jnp.asarray(schedule), key, split, self._arrays)
        return Measured(float(loss), float(error), broke_down(loss, losses))

    def measure_with_hypergradients(self, schedule, key, split):
        """What a pass with hypergradients measures, `Measured`."""
        (loss, (error, losses)), derivatives = self._hypergradients(
            jnp.asarray(schedule), key, split, self._arrays
        )
        derivatives = np.asarray(derivatives, "float64")
        return Measured(float(loss), float(error), broke_down(loss, losses), derivatives)

    def test(self, schedule, keys, split):
        """What trainings with several keys give, `Tested`."""
        return Tested(
            *map(np.asarray, self._test(jnp.asarray(schedule), keys, split, self._arrays))
        )

    # ------------------------------------------------------------------------ pure functions
    def _trained(self, schedule, key, split, pool):
        horizon, of_weights, of_order = len(schedule), *jax.random.split(key)
        weights, statistics = self.model.initialize(of_weights)
        slots = self.optimizer.slots(weights)
        batches = self._batches(of_order, split.train, horizon)

        @jax.checkpoint
        def inner_step(state, at_step):
            (weights, statistics, slots), (numbers, batch) = state, at_step

            def batch_loss(weights):
                logits, new = self.model.apply(weights, statistics, pool.inputs[batch], True)
                return _losses(logits, pool.labels[batch]).mean(), new

            value_and_gradients = jax.value_and_grad(batch_loss, has_aux=True)
            (loss, statistics), gradients = value_and_gradients(weights)
            weights, slots = self.optimizer.update(numbers, gradients, slots, weights)
            return (weights, statistics, slots), loss

        state, losses = lax.scan(inner_step, (weights, statistics, slots), (schedule, batches))
        weights, statistics, _ = state
        return weights, statistics, losses

    def _batches(self, key, train, horizon):
        """Examples of every step, `[horizon, batch_size]`: a new order in each epoch."""
        steps = len(train) // self.batch_size
        epochs = -(-horizon // steps)
        orders = jax.vmap(lambda k: jax.random.permutation(k, train))(jax.random.split(key, epochs))
        orders = orders[:, : steps * self.batch_size]
        return orders.reshape(epochs * steps, self.batch_size)[:horizon]

    def _validated(self, schedule, key, split, arrays):
        pool, _ = arrays
        weights, statistics, training_losses = self._trained(schedule, key, split, pool)
        held_out = split.validation
        logits, _ = self.model.apply(weights, statistics, pool.inputs[held_out], False)
        # The standard error counts examples, not their characters, which are alike.
        losses = _losses(logits, pool.labels[held_out]).reshape(len(held_out), -1).mean(axis=1)
        return losses.mean(), (losses.std() / np.sqrt(len(held_out)), training_losses)

    def _tested(self, schedule, key, split, arrays):
        pool, test = arrays
        weights, statistics, _ = self._trained(schedule, key, split, pool)
        held_out = split.validation
        logits, _ = self.model.apply(weights, statistics, pool.inputs[held_out], False)
        validation_loss = _losses(logits, pool.labels[held_out]).mean()
        logits, _ = self.model.apply(weights, statistics, test.inputs, False)
        accuracy = (logits.argmax(axis=-1) == test.labels).mean()
        return validation_loss, _losses(logits, test.labels).mean(), accuracy


def broke_down(loss, training_losses, factor=20.0, patience=10):
    """Whether `keras_fds.fit` gives such a training up, see its `divergence_factor`.

    Args:
        loss: Validation loss.
        training_losses: The losses of all inner steps.
        factor: A training loss is high when it is above this many times the greatest of the first.
        patience: Number of first losses. As many high losses in a row end a training.
    """
    losses = np.asarray(training_losses)
    if not (np.isfinite(loss) and np.isfinite(losses).all()):
        return True
    is_high = losses > factor * losses[:patience].max()
    in_a_row = np.convolve(is_high, np.ones(patience), "valid")
    return bool((in_a_row >= patience - 0.5).any())


def _losses(logits, labels):
    """Cross-entropies."""
    logarithms = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(logarithms, labels[..., None], axis=-1)[..., 0]
