"""Learns schedules for a model of your own, then trains it in stock Keras.

python examples/own_model.py
"""

import keras
from sklearn import datasets

import keras_fds


def main(outer_steps=6, epochs=10, retraining_epochs=30):
    """Returns the accuracy on the 297 images that no training saw."""
    x, y = datasets.load_digits(return_X_y=True)
    x = x / 16 - 0.3
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)]
    )
    optimizer = keras_fds.HyperOptimizer(
        keras.optimizers.Adam(),
        [
            keras_fds.Hyperparameter("learning_rate", num_buckets=5, initial=1e-3, step_size=3e-3),
            keras_fds.Hyperparameter("beta_1", initial=0.8, step_size=0.1),
        ],
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    keras_fds.fit(
        model,
        x[:1500],
        y[:1500],
        batch_size=100,
        epochs=epochs,
        outer_steps=outer_steps,
        validation_split=0.1,
        verbose=2,
    )
    print(optimizer.schedules)
    model.fit(x[:1500], y[:1500], batch_size=100, epochs=retraining_epochs, verbose=2)
    return model.evaluate(x[1500:], y[1500:], verbose=0)[1]


if __name__ == "__main__":
    print(f"accuracy {main():.1%}")
