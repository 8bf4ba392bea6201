"""A mode made of NumPy: the contract of the modes, without TensorFlow tracing anything.

It trains linear least squares by gradient descent with momentum, as `keras_fds.optimizers.SGD`
does, and carries one tangent per bucket. What uses a mode (the outer loop, checkpoints, callbacks,
the table of costs) is tested with it in milliseconds.
"""

import keras
import numpy as np
import tensorflow as tf

import keras_fds
from keras_fds.data import get_batch, size_in_bytes
from keras_fds.functional import build_compiled
from keras_fds.internals import keras_models
from keras_fds.schedules import blend

NUM_EXAMPLES = 60


def arrays():
    """`(x, y)`: three features, and a target that is nearly linear in them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM_EXAMPLES, 3)).astype("float32")
    return x, (x @ [[1.0], [-2.0], [0.5]] + 0.3 * rng.normal(size=(NUM_EXAMPLES, 1))).astype("f4")


def make_model(
    num_buckets=2,
    initial=0.05,
    outer=None,
    compiled=True,
    interpolation="constant",
    **compile_arguments,
):
    """A linear model that learns a schedule of its learning rate, and its momentum."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    optimizer = keras_fds.HyperOptimizer(
        keras_fds.optimizers.SGD(),
        [
            keras_fds.Hyperparameter(
                "learning_rate", num_buckets, initial, step_size=0.1, interpolation=interpolation
            ),
            keras_fds.Hyperparameter("momentum", 1, 0.0, step_size=0.3),
        ],
        outer=outer,
    )
    if compiled:
        model.compile(optimizer, loss="mse", **compile_arguments)
    return model


class NumpyMode(keras_fds.differentiation.Mode):
    """See above.

    Args:
        name: What it is called. Defaults to `"numpy"`.
        resumable: Whether a run can be gone on with. Defaults to `True`.
    """

    def __init__(self, name="numpy", resumable=True):
        self.name, self.resumable = name, resumable

    def bind(self, model, spec, replicas=None):
        build_compiled(model, spec)
        self.model, self.hyper_optimizer = model, model.optimizer
        self.buckets = model.optimizer.buckets
        self.weight = model.trainable_variables[0]
        shape = [1 + 2 * self.buckets.size, 3]  # Velocity, then tangents of weights and velocity.
        self.carried = tf.Variable(np.zeros(shape))
        return self

    def check_memory(self, batches, horizon):
        pass

    def cost(self, horizon):
        return 2.0

    def work(self, horizon):
        return np.ones(horizon)

    def memory(self, horizon):
        return [("state", size_in_bytes([self.weight.value, self.carried]))]

    def reset(self, horizon, divergence_factor=None):
        self.horizon = int(horizon)
        self.hyper_optimizer.begin_schedules(self.horizon)
        self.carried.assign(np.zeros(self.carried.shape))

    @np.errstate(all="ignore")
    def run(self, source, position, inner_step, count):
        values = self.buckets.values(self.hyper_optimizer.coordinates)
        flat = self.buckets.join(values)
        weight = self.weight.numpy().astype("float64")[:, 0]
        velocity, *tangents = self.carried.numpy()
        of_weight, of_velocity = np.split(np.array(tangents), 2)
        for step in range(count):
            x, y, _ = get_batch(source, position + step)
            x, y = x.numpy().astype("float64"), y.numpy().astype("float64")[:, 0]
            loss = np.mean(np.square(x @ weight - y))
            self._update_metrics(x, y, weight, loss)
            if not np.isfinite(loss):
                self.weight.assign(weight[:, None].astype(self.weight.dtype))
                return step + 1, False
            gradient, hessian = 2 * x.T @ (x @ weight - y) / len(x), 2 * x.T @ x / len(x)
            rows = self.buckets.shares(inner_step + step, self.horizon)
            unit = np.eye(self.buckets.size)
            of_rate, of_momentum = (
                blend(unit[lower], unit[upper], fraction)
                for lower, upper, fraction in (rows["learning_rate"], rows["momentum"])
            )
            rate, momentum = of_rate @ flat, of_momentum @ flat
            of_velocity = (
                momentum * of_velocity + of_momentum[:, None] * velocity + of_weight @ hessian
            )
            velocity = momentum * velocity + gradient
            of_weight = of_weight - of_rate[:, None] * velocity - rate * of_velocity
            # Kept in the model's type after every step, so calls may be of any length.
            weight = (weight - rate * velocity).astype(self.weight.dtype).astype("float64")
        self.weight.assign(weight[:, None].astype(self.weight.dtype))
        self.carried.assign(np.stack([velocity, *of_weight, *of_velocity]))
        return count, True

    def validate(self, source, num_batches, training=False, at_batch=None):
        weight = self.weight.numpy().astype("float64")[:, 0]
        losses = []
        sizes = []
        self.gradient = np.zeros(3)
        for first in range(num_batches):
            x, y, _ = get_batch(source, first)
            x, y = x.numpy().astype("float64"), y.numpy().astype("float64")[:, 0]
            losses.append(np.mean(np.square(x @ weight - y)))
            sizes.append(len(x))
            self.gradient += 2 * x.T @ (x @ weight - y)
            self._update_metrics(x, y, weight, losses[-1])
        self.gradient /= sum(sizes)
        error = np.std(losses, ddof=1) / np.sqrt(len(losses)) if len(losses) > 1 else None
        return float(np.average(losses, weights=sizes)), error and float(error)

    def _update_metrics(self, x, y, weight, loss):
        batch = x, y[:, None].astype("float32"), None
        outputs = (x @ weight)[:, None].astype("float32")
        keras_models.update_metrics(self.model, batch, np.float32(loss), outputs)

    def hypergradients(self):
        of_weight = self.carried.numpy()[1 : 1 + self.buckets.size]
        return of_weight @ self.gradient

    @property
    def checkpoint_variables(self):
        return [self.carried] if self.resumable else None

    @property
    def protected_variables(self):
        return [self.weight]

    outside_variables = ()

    @property
    def trained_variables(self):
        return list(self.model.trainable_variables)

    break_down_reason = "stopped being finite"

    def check_trainable(self):
        pass

    def release(self):
        pass

    def get_config(self):
        return {"name": self.name, "resumable": self.resumable}
