"""Whole models of every kind: forward hypergradients equal finite differences in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from keras_fds.data.arrays import ArrayBatches, as_arrays
from keras_fds.data.datasets import DatasetBatches
from tests.differentiation import reference

pytestmark = pytest.mark.usefixtures("float64")
HORIZON = 5
BATCH = 4
NUM_EXAMPLES = 40
rng = np.random.default_rng(1)
FEATURES = rng.normal(size=(NUM_EXAMPLES, 5))
TOKENS = np.concatenate([rng.integers(1, 7, (NUM_EXAMPLES, 4)), np.zeros((NUM_EXAMPLES, 2))], 1)
LABELS = rng.integers(0, 3, NUM_EXAMPLES)
TARGETS = rng.normal(size=(NUM_EXAMPLES, 2))
WEIGHTS = rng.uniform(0.2, 2.0, NUM_EXAMPLES)
layers = keras.layers


def recurrent(layer):
    return keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            layers.Embedding(7, 4, mask_zero=True, embeddings_regularizer="l2"),
            layer,
            layers.Dense(3),
        ]
    )


def attention():
    tokens = keras.Input((6,), dtype="int32")
    embedded = layers.Embedding(7, 4)(tokens)
    attended = layers.MultiHeadAttention(2, 2, dropout=0.1)(embedded, embedded)
    normalized = layers.LayerNormalization()(layers.Add()([embedded, attended]))
    pooled = layers.GlobalAveragePooling1D()(normalized)
    return keras.Model(tokens, layers.Dense(3)(pooled))


def two_inputs_and_outputs():
    features, tokens = keras.Input((5,), name="features"), keras.Input((6,), name="tokens")
    words = layers.Flatten()(layers.Embedding(7, 2)(tokens))
    hidden = layers.Concatenate()([layers.Dense(4, activation="gelu")(features), words])
    outputs = {
        "kind": layers.Dense(3, name="kind")(hidden),
        "place": layers.Dense(2, name="place")(hidden),
    }
    return keras.Model({"features": features, "tokens": tokens}, outputs)


class Subclassed(keras.Model):
    """Own weights, `add_loss`, a shared layer, and a mode of training."""

    def __init__(self):
        super().__init__()
        self.shared = layers.Dense(5, activation="tanh")
        self.norm = layers.BatchNormalization(momentum=0.8)
        self.drop = layers.Dropout(0.2)
        self.head = layers.Dense(3)

    def build(self, shape):
        self.scale = self.add_weight(shape=(5,), initializer="ones", name="scale")

    def call(self, inputs, training=False):
        hidden = self.shared(self.shared(inputs) * self.scale)
        self.add_loss(0.01 * tf.reduce_sum(tf.square(hidden)))
        return self.head(self.drop(self.norm(hidden, training=training), training=training))


class OwnLoss(Subclassed):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return loss + 0.1 * tf.reduce_mean(tf.square(y_pred))


MODELS = {
    "recurrent": (
        lambda: recurrent(layers.SimpleRNN(2, recurrent_dropout=0.2)),
        TOKENS,
        LABELS,
    ),
    "attention": (attention, TOKENS, LABELS),
    "two_inputs_and_outputs": (
        two_inputs_and_outputs,
        {"features": FEATURES, "tokens": TOKENS},
        {"kind": LABELS, "place": TARGETS},
    ),
    "subclassed": (OwnLoss, FEATURES, LABELS),
}


def compile_model(model, loss):
    model.compile(
        keras_fds.HyperOptimizer(
            keras.optimizers.AdamW(epsilon=1e-2),
            [
                keras_fds.Hyperparameter("learning_rate", 2, [0.05, 0.02]),
                keras_fds.Hyperparameter("beta_1", 1, 0.8),
                keras_fds.Hyperparameter("weight_decay", 1, 0.1),
            ],
        ),
        loss=loss,
    )
    return model


def assert_exact(model, train, validation):
    forward, differences = reference.forward_and_differences(model, train, validation)
    for each, values in forward.items():
        scale = np.abs(differences[each]).max()
        assert scale > 1e-7
        np.testing.assert_allclose(values, differences[each], rtol=0, atol=1e-6 * scale)


def crossentropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.mark.sweep("recurrent")
@pytest.mark.parametrize("name", MODELS)
def test_hypergradients_equal_finite_differences(name):
    make, x, y = MODELS[name]
    loss, weight = crossentropy(), WEIGHTS
    if isinstance(y, dict):
        loss = {"kind": crossentropy(), "place": "mse"}
        weight = {"kind": WEIGHTS, "place": WEIGHTS[::-1]}
    data = as_arrays(x, y, None if name == "recurrent" else weight)
    train = ArrayBatches(data, BATCH, np.arange(HORIZON * BATCH))
    validation = train.subset(np.arange(HORIZON * BATCH, NUM_EXAMPLES), 10)
    assert_exact(compile_model(make(), loss), train, validation)


def test_sparse_inputs():
    sparse = tf.sparse.from_dense(np.where(FEATURES > 0.5, FEATURES, 0.0))
    dataset = tf.data.Dataset.from_tensor_slices((sparse, LABELS)).batch(BATCH)
    train, validation = dataset.take(HORIZON), dataset.skip(HORIZON)
    model = keras.Sequential(
        [
            keras.Input((5,), sparse=True),
            layers.Dense(4, activation="tanh"),
            layers.Dense(3),
        ]
    )
    what = ("", "")
    assert_exact(
        compile_model(model, crossentropy()),
        DatasetBatches(train, None, what),
        DatasetBatches(validation, None, what),
    )


def test_sparse_arrays_are_refused_with_the_remedy():
    model = keras.Sequential([keras.Input((5,), sparse=True), layers.Dense(3)])
    compile_model(model, crossentropy())
    with pytest.raises(ValueError, match="Sparse data must come as a dataset"):
        keras_fds.fit(model, tf.sparse.from_dense(FEATURES), LABELS, validation_split=0.2)
