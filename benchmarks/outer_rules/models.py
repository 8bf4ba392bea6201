"""Small networks as pure functions of their weights.

Convolutions are products with patches: under `jax.vmap` and differentiated twice they stay
products, which are fast on a CPU.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Model(NamedTuple):
    """A network.

    Args:
        initialize: `key -> (weights, statistics)`; statistics are what batch normalisation
            remembers.
        apply: `(weights, statistics, inputs, training) -> (logits, statistics)`.
    """

    initialize: Callable
    apply: Callable


# -------------------------------------------------------------------------------------- layers
def dense_weights(key, inputs, outputs):
    scale = np.sqrt(2 / (inputs + outputs))
    return {"kernel": scale * jax.random.normal(key, (inputs, outputs)), "bias": jnp.zeros(outputs)}


def dense(weights, inputs):
    return inputs @ weights["kernel"] + weights["bias"]


def patches(images):
    """Every 3 by 3 neighbourhood of `[..., rows, columns, channels]`, zero beyond the rim."""
    rows, columns = images.shape[-3:-1]
    padded = jnp.pad(images, [(0, 0)] * (images.ndim - 3) + [(1, 1), (1, 1), (0, 0)])
    shifted = [
        padded[..., row : row + rows, column : column + columns, :]
        for row in range(3)
        for column in range(3)
    ]
    return jnp.concatenate(shifted, axis=-1)


def halved(images):
    """Means over blocks of 2 by 2."""
    *batch, rows, columns, channels = images.shape
    images = images[..., : rows // 2 * 2, : columns // 2 * 2, :]
    blocks = images.reshape(*batch, rows // 2, 2, columns // 2, 2, channels)
    return blocks.mean(axis=(-4, -2))


def batch_normalization(weights, statistics, inputs, training, momentum=0.9, epsilon=1e-3):
    """Batch normalisation over all axes but the last; its output and new moving statistics."""
    if training:
        axes = tuple(range(inputs.ndim - 1))
        mean = inputs.mean(axis=axes)
        variance = jnp.square(inputs - mean).mean(axis=axes)
        new = {"mean": mean, "variance": variance}
        statistics = jax.tree.map(
            lambda old, now: momentum * old + (1 - momentum) * now, statistics, new
        )
    else:
        mean, variance = statistics["mean"], statistics["variance"]
    normalized = (inputs - mean) * jax.lax.rsqrt(variance + epsilon)
    return normalized * weights["scale"] + weights["offset"], statistics


def layer_normalization(weights, inputs, epsilon=1e-5):
    centred = inputs - inputs.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon) * weights["scale"] + weights["offset"]


def normalization_weights(width):
    return {"scale": jnp.ones(width), "offset": jnp.zeros(width)}


# ------------------------------------------------------------------------------------ networks
def perceptron(num_inputs, hidden, num_classes):
    """Dense layers with relu between them."""
    sizes = [num_inputs, *hidden, num_classes]

    def initialize(key):
        keys = jax.random.split(key, len(sizes) - 1)
        return [dense_weights(*each) for each in zip(keys, sizes, sizes[1:])], ()

    def apply(weights, statistics, inputs, training):
        outputs = inputs.reshape(len(inputs), -1)
        for layer in weights[:-1]:
            outputs = jax.nn.relu(dense(layer, outputs))
        return dense(weights[-1], outputs), statistics

    return Model(initialize, apply)


def convolutional(channels, pixels, num_classes):
    """Convolutions of 3 by 3 with batch normalisation and pooling, and a dense layer."""
    rest = pixels // 2 ** len(channels)
    sizes = [1, *channels]

    def initialize(key):
        keys = jax.random.split(key, len(channels) + 1)
        blocks = [
            {
                # No bias: batch normalisation would remove it.
                "kernel": np.sqrt(2 / (9 * inputs)) * jax.random.normal(k, (9 * inputs, outputs)),
                "normalization": normalization_weights(outputs),
            }
            for k, inputs, outputs in zip(keys, sizes, channels)
        ]
        statistics = [
            {"mean": jnp.zeros(outputs), "variance": jnp.ones(outputs)} for outputs in channels
        ]
        top = dense_weights(keys[-1], rest**2 * channels[-1], num_classes)
        return {"blocks": blocks, "top": top}, statistics

    def apply(weights, statistics, inputs, training):
        outputs, new_statistics = inputs[..., None], []
        for block, old in zip(weights["blocks"], statistics):
            outputs = patches(outputs) @ block["kernel"]
            outputs, new = batch_normalization(block["normalization"], old, outputs, training)
            outputs = halved(jax.nn.relu(outputs))
            new_statistics.append(new)
        return dense(weights["top"], outputs.reshape(len(inputs), -1)), new_statistics

    return Model(initialize, apply)


def recurrent(num_inputs, width, num_classes):
    """A gated recurrent unit over the rows of an image, and a dense layer on its last state."""

    def initialize(key):
        keys = jax.random.split(key, 4)
        return {
            "gates": dense_weights(keys[0], num_inputs + width, 2 * width),
            "candidate": dense_weights(keys[1], num_inputs + width, width),
            "top": dense_weights(keys[2], width, num_classes),
        }, ()

    def apply(weights, statistics, inputs, training):
        state = jnp.zeros((len(inputs), width), inputs.dtype)
        for row in range(inputs.shape[1]):
            inputs_now = inputs[:, row]
            joined = jnp.concatenate([inputs_now, state], axis=-1)
            update, reset = jnp.split(jax.nn.sigmoid(dense(weights["gates"], joined)), 2, axis=-1)
            joined = jnp.concatenate([inputs_now, reset * state], axis=-1)
            candidate = jnp.tanh(dense(weights["candidate"], joined))
            state = update * state + (1 - update) * candidate
        return dense(weights["top"], state), statistics

    return Model(initialize, apply)


def attention(length, width, heads, num_classes):
    """One block of causal self-attention and a perceptron, normalised before each."""

    def initialize(key):
        keys = jax.random.split(key, 7)
        return {
            "characters": 0.3 * jax.random.normal(keys[0], (num_classes, width)),
            "positions": 0.3 * jax.random.normal(keys[1], (length, width)),
            "normalization": [normalization_weights(width) for _ in range(3)],
            "queries_keys_values": dense_weights(keys[2], width, 3 * width),
            "projection": dense_weights(keys[3], width, width),
            "hidden": dense_weights(keys[4], width, 2 * width),
            "output": dense_weights(keys[5], 2 * width, width),
            "top": dense_weights(keys[6], width, num_classes),
        }, ()

    def attended(weights, inputs):
        batch = inputs.shape[0]
        joined = dense(weights["queries_keys_values"], inputs)
        shape = (batch, length, 3, heads, width // heads)
        queries, keys, values = jnp.moveaxis(joined.reshape(shape), 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", queries, keys) / np.sqrt(width // heads)
        past = np.tril(np.ones((length, length), bool))
        parts = jax.nn.softmax(jnp.where(past, scores, -1e9))
        outputs = jnp.einsum("bhqk,bkhd->bqhd", parts, values).reshape(batch, length, width)
        return dense(weights["projection"], outputs)

    def apply(weights, statistics, inputs, training):
        first, second, third = weights["normalization"]
        outputs = weights["characters"][inputs] + weights["positions"]
        outputs = outputs + attended(weights, layer_normalization(first, outputs))
        hidden = jax.nn.gelu(dense(weights["hidden"], layer_normalization(second, outputs)))
        outputs = outputs + dense(weights["output"], hidden)
        return dense(weights["top"], layer_normalization(third, outputs)), statistics

    return Model(initialize, apply)
