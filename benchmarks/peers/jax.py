"""The paper's recursion in JAX: `jvp` of the whole step, `vmap` over the tangents."""

import functools

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp

from benchmarks import problems


class Engine:
    """See `benchmarks.peers`."""

    def __init__(self, problem, dtype):
        jax.config.update("jax_enable_x64", dtype == "float64")
        self.problem = problem
        self.apply = _NETWORKS[problem.network.split("_")[0]]
        to_device = functools.partial(jax.tree.map, lambda a: jnp.asarray(a, dtype))
        x, y, x_validation, y_validation = problem.data()
        self.initial = to_device(problems.weights(problem))
        self.x, self.x_validation = to_device((x, x_validation))
        self.y, self.y_validation = jnp.asarray(y), jnp.asarray(y_validation)
        steps = range(problem.horizon)
        self.values = to_device(np.array([problem.values_at(t) for t in steps]))
        self.one_hot = to_device(np.array([problem.one_hot_at(t).T for t in steps]))
        # Not `lax.scan`: on a CPU, XLA's convolutions in a loop take one thread and longer.
        self.one_step = jax.jit(self._one_step)
        self.reset()

    def reset(self):
        state = self.initial, jax.tree.map(jnp.zeros_like, self.initial)
        number = self.problem.num_tangents
        tangents = jax.tree.map(lambda s: jnp.zeros((number, *s.shape), s.dtype), state)
        self.carry = state, tangents

    def loss(self, weights, x, y):
        logits = jax.nn.log_softmax(self.apply(weights, x))
        return -jnp.mean(jnp.take_along_axis(logits, y[:, None], 1))

    def step(self, x, y, state, values):
        (w, v), (a, b, decay) = state, values
        g = jax.grad(self.loss)(w, x, y)
        v = jax.tree.map(lambda v, g, w: b * v + g + decay * w, v, g, w)
        return jax.tree.map(lambda w, v: w - a * v, w, v), v

    def _one_step(self, carry, batch):
        (state, tangents), (x, y, values, one_hot) = carry, batch
        step = functools.partial(self.step, x, y)

        def push(tangent, of_values):
            return jax.jvp(step, (state, values), (tangent, of_values))

        return jax.vmap(push, out_axes=(None, 0))(tangents, one_hot)

    def run(self, steps):
        for t in steps:
            batch = self.x[t], self.y[t], self.values[t], self.one_hot[t]
            self.carry = self.one_step(self.carry, batch)
        jax.block_until_ready(self.carry)

    def hypergradients(self):
        self.reset()
        self.run(range(self.problem.horizon))
        (w, _), (z, _) = self.carry
        gradients = jax.grad(self.loss)(w, self.x_validation, self.y_validation)
        products = jax.tree.map(lambda z, g: (z * g).reshape(len(z), -1).sum(1), z, gradients)
        return self.problem.means(sum(jax.tree.leaves(products)))

    def steps(self, count):
        self.run(range(self.problem.horizon - count, self.problem.horizon))


def _convolve(x, kernel, stride=1, padding="VALID"):
    if isinstance(padding, int):
        padding = [(padding, padding)] * 2
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride,) * 2, padding, dimension_numbers=numbers)


def _max_pool(x):
    # Quicker than `reduce_window`, whose derivatives are slow under `vmap` on a CPU.
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))


def _lenet(weights, x):
    (kernel_1, bias_1), (kernel_2, bias_2) = weights["Conv2D"]
    x = _max_pool(jax.nn.relu(_convolve(x, kernel_1, padding=2) + bias_1))
    x = _max_pool(jax.nn.relu(_convolve(x, kernel_2) + bias_2))
    return _mlp(weights, x)


def _mlp(weights, x):
    x = x.reshape(len(x), -1)
    *hidden, (kernel, bias) = weights["Dense"]
    for hidden_kernel, hidden_bias in hidden:
        x = jax.nn.relu(x @ hidden_kernel + hidden_bias)
    return x @ kernel + bias


def _wide_resnet(weights, x):
    convolutions = iter(kernel for (kernel,) in weights["Conv2D"])
    normalizations = iter(weights["BatchNormalization"])

    def activation(x):
        gamma, beta = next(normalizations)
        mean = x.mean((0, 1, 2))
        variance = jnp.square(x - mean).mean((0, 1, 2))
        return jax.nn.relu((x - mean) * lax.rsqrt(variance + 1e-5) * gamma + beta)

    x = _convolve(x, next(convolutions), padding=1)
    blocks = (len(weights["BatchNormalization"]) - 1) // 2
    for block in range(blocks):
        stride = 2 if block and block % (blocks // 3) == 0 else 1
        activated, shortcut = activation(x), x
        if stride == 2:
            shortcut = _convolve(activated, next(convolutions), stride)
        x = activation(_convolve(activated, next(convolutions), stride, padding=1))
        x = _convolve(x, next(convolutions), padding=1) + shortcut
    return _mlp(weights, activation(x).mean((1, 2)))


_NETWORKS = {"lenet": _lenet, "mlp": _mlp, "wrn": _wide_resnet}
