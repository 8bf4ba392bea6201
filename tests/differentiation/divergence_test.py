"""Runs whose loss grows far above that of their start are given up, and only those."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from keras_fds.differentiation.divergence import PATIENCE, DivergenceDetector, steps_while_ok
from keras_fds.internals import tf_compilation
from tests.small_problem import arrays

FACTOR = 20.0


class Runner:
    """Shows a sequence of losses to a detector, some steps per call."""

    def __init__(self, factor=FACTOR):
        self.factor, self.detector = factor, DivergenceDetector()
        self.call = tf_compilation.compiled(self.in_graph)

    def in_graph(self, losses, first, count):
        def one_step(i):
            return [losses[first + i]]

        return steps_while_ok(count, one_step, detector=self.detector)

    def __call__(self, losses, steps_a_call=1000):
        """`(steps done, whether the run was not given up)`."""
        self.detector.reset(self.factor)
        losses = tf.constant(losses, "float32")
        done = 0
        ok = True
        while ok and done < len(losses):
            count = tf.constant(min(steps_a_call, len(losses) - done), "int32")
            steps, ok = self.call(losses, tf.constant(done, "int32"), count)
            done += int(steps)
        return done, bool(ok)


@pytest.fixture(scope="module")
def runner():
    return Runner()


GROWING = [2.0 * 1.3**step for step in range(60)]
CASES = {
    "high from the second step": ([2.0] + [1e6] * 50, 1 + PATIENCE),
    "high later": ([2.0] * 30 + [41.0] * 50, 30 + PATIENCE),
    "just below the limit": ([2.0] * 30 + [39.0] * 50, None),
    # The limit is 20 times the tenth loss, which the twenty-second passes.
    "growing from the start": (GROWING, 21 + PATIENCE),
    "not a number": ([2.0, 1.0, np.nan, 1.0], 3),
    "infinite": ([2.0, np.inf, 1.0], 2),
    "spikes of some batches": (([2.0] * 20 + [1e6] * (PATIENCE - 1)) * 5, None),
    "a first batch with a small loss": ([1e-4, 1e-3, 1e-2] + [1e-1, 0.5] * 30, None),
    "zero at first": ([0.0] + [1e6] * 50, None),
    "negative": ([-1.0] + [1e6] * 50, None),
}


@pytest.mark.parametrize("steps_a_call", [1, 7, 1000])
@pytest.mark.parametrize("case", CASES)
def test_only_losses_that_stay_high_end_a_run(runner, case, steps_a_call):
    losses, end = CASES[case]
    expected = (len(losses), True) if end is None else (end, False)
    assert runner(losses, steps_a_call) == expected


def test_the_verdict_says_why(runner):
    runner(CASES["high later"][0])
    assert runner.detector.reason == (
        "was above 40, 20 times that of the first steps, for the 10th step in a row"
    )
    runner(CASES["not a number"][0])
    assert runner.detector.reason == "stopped being finite"


def test_no_factor_bears_any_finite_loss():
    runner = Runner(None)
    assert runner([2.0] + [1e30] * 30) == (31, True)
    assert runner([2.0, np.nan]) == (2, False)


# -------------------------------------------------------------------------------- whole searches
def search(rates, num_learned=1, steps_per_execution=1, **arguments):
    """A search whose later steps have the learning rate `rates[1]`, in a run of 192 steps."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(16, "relu"),
            keras.layers.Dense(16, "relu"),
            keras.layers.Dense(1),
        ]
    )
    optimizer = keras_fds.optimizers.SGD(rates[0], global_clipnorm=1.0)
    learned = [keras_fds.Hyperparameter("learning_rate", 2, list(rates))][:num_learned]
    model.compile(
        keras_fds.HyperOptimizer(optimizer, learned),
        loss="mse",
        steps_per_execution=steps_per_execution,
    )
    steps = []
    spy = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: steps.append(batch))
    x = arrays()[0]
    history = keras_fds.fit(
        model,
        x,
        x[:, :1],
        epochs=16,
        outer_steps=1,
        validation_split=0.2,
        resample_validation="once",
        verbose=0,
        callbacks=[spy],
        **{"batch_size": 4, **arguments},
    )
    return steps[-1] + 1, history.history["val_loss"][0]


@pytest.mark.sweep("forward", "checkpoints")
@pytest.mark.parametrize(
    "arguments",
    [
        {"differentiation": "forward"},
        {"differentiation": "reverse"},
        {"differentiation": "reverse", "reverse_memory": 160000},
        {"differentiation": "forward", "num_learned": 0, "rates": (100.0, 100.0)},
    ],
    ids=["forward", "reverse", "checkpoints", "nothing to learn"],
)
def test_a_diverging_run_ends_early_whatever_the_calls(arguments):
    ends = []
    for steps_per_execution in (1, 5, 64):
        with pytest.warns(RuntimeWarning, match="Outer step 1: .*20 times.*of 192.*given up"):
            each = {"rates": (0.01, 100.0), "steps_per_execution": steps_per_execution}
            ends.append(search(**{**each, **arguments}))
    steps, losses = zip(*ends)
    assert len(set(steps)) == 1
    begin = 0 if "rates" in arguments else 96
    assert begin + PATIENCE < steps[0] <= begin + 2 * PATIENCE
    assert np.isnan(losses).all()


@pytest.mark.sweep()
def test_none_lets_it_run():
    steps, loss = search((0.01, 100.0), divergence_factor=None)
    assert steps == 192
    assert loss > 1e3


@pytest.mark.sweep("4")
@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_healthy_noisy_run_does_not_end(batch_size):
    steps, loss = search((0.02, 0.05), batch_size=batch_size)
    assert steps == 768 / batch_size
    assert np.isfinite(loss)
