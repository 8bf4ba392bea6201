"""One engine in a process of its own: measures one thing and prints it as JSON.

    python -m benchmarks.worker --engine=reverse --network=lenet --batch=128 --num_rate_buckets=7

Engines: `stock` (`model.fit` with keras_fds' SGD), `plain` (`keras_fds.fit` with nothing to
learn), `trial` (a black box's training, `trainers.trials`), `forward`, `reverse`, `checkpoints`
(reverse mode from √T checkpoints), and the peers `pytorch` and `jax`. Measurements:

- `turns`: for every line on standard input, the seconds per step (in forward mode with all tangents
  open, in reverse mode over a whole outer step, of a trial all of it but its validation);
- `hypergradients`: in float64;
- `start`: the seconds to the end of the first compiled call;
- `again`: the time of a second call of `hypergradients`, relative to the compiled calls in it;
- `peak`: the peak resident memory of one outer step, in megabytes.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import contextlib
import importlib
import json
import resource
import statistics
import sys
import time

import numpy as np
from absl import app, flags

from benchmarks import problems

_ENGINE = flags.DEFINE_string("engine", None, "Which engine.", required=True)
_NETWORK = flags.DEFINE_enum("network", "lenet", list(problems.IMAGES), "Which network.")
_BATCH = flags.DEFINE_integer("batch", 128, "Examples in a batch.")
_HORIZON = flags.DEFINE_integer("horizon", 140, "Inner steps in an outer step.")
_NUM_RATE_BUCKETS = flags.DEFINE_integer("num_rate_buckets", 7, "Buckets of the learning rate.")
_NUM_WEIGHTS = flags.DEFINE_integer(
    "num_weights", None, "Weights of groups of examples, learned in place of the schedules."
)
_CHUNK_SIZE = flags.DEFINE_integer("tangent_chunk_size", None, "Of forward mode.")
_STEPS_A_CALL = flags.DEFINE_integer("steps_a_call", 10, "Inner steps in a compiled call.")
_JIT_COMPILE = flags.DEFINE_boolean("by_xla", False, "Whether XLA compiles the steps.")
_DISTRIBUTION = flags.DEFINE_enum(
    "distribution",
    "none",
    ["none", "one_device", "mirrored"],
    "Strategy of one device to train under.",
)
_DTYPE_POLICY = flags.DEFINE_string("dtype_policy", "float32", "Keras's policy for the network.")
_STATES = flags.DEFINE_integer("states", None, "Copies of the state that `checkpoints` may keep.")
_PASSES = flags.DEFINE_integer("passes", 1, "Passes over the batches of an outer step.")
_WHOLE = flags.DEFINE_boolean("whole", False, "Time whole outer steps, whatever the engine.")
_MEASURE = flags.DEFINE_enum(
    "measure", "turns", ["turns", "hypergradients", "start", "again", "peak"], "What is measured."
)

PEERS = ("pytorch", "jax")


def say(value):
    print(json.dumps(value), flush=True)


def compiled(problem, learning=True):
    """The network, compiled with a `HyperOptimizer`, or with plain SGD if learning is `None`."""
    import keras

    import keras_fds

    schedules = problem.schedules
    optimizer = keras_fds.optimizers.SGD(
        learning_rate=float(schedules["learning_rate"][0]),
        momentum=float(schedules["momentum"][0]),
        weight_decay=float(schedules["weight_decay"][0]),
    )
    if learning is not None:
        hyperparameters = [
            keras_fds.Hyperparameter(name, len(values), values)
            for name, values in schedules.items()
        ]
        if _NUM_WEIGHTS.value:
            examples = problem.horizon * problem.batch
            groups = np.linspace(0, _NUM_WEIGHTS.value - 1, examples).astype("int64")
            hyperparameters = [keras_fds.Hyperparameter("sample_weight", groups=groups)]
        optimizer = keras_fds.HyperOptimizer(
            optimizer,
            hyperparameters if learning else [],
            outer=held_schedules(),
        )
    model = problems.keras_model(problem)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        optimizer,
        loss=loss,
        steps_per_execution=_STEPS_A_CALL.value,
        jit_compile=_JIT_COMPILE.value,
    )
    return model


def held_schedules():
    """An outer rule that moves nothing: every outer step costs the same."""
    import keras_fds

    class Hold(keras_fds.outer.Rule):
        def propose(self, observations, problem):
            done = len(observations)
            if done == len(problem.horizons):
                return None
            return keras_fds.outer.Proposal(problem.start, problem.horizons[done])

        def get_config(self):
            return {}

    return Hold()


def mode(problem, engine, bytes_of_batches=0):
    """The arguments of keras_fds's functions that choose an engine's mode."""
    import keras_fds

    if engine == "reverse":
        return {"differentiation": "reverse"}
    if engine == "checkpoints":
        # A copy of the state: weights and velocities, moving statistics, counters.
        state = 2.1 * sum(w.nbytes for w in problems.keras_model(problem).get_weights())
        states = _STATES.value or 2.5 * (problem.horizon * _PASSES.value) ** 0.5
        memory = states * state
        return {"differentiation": keras_fds.differentiation.Reverse(memory + bytes_of_batches)}
    return {"differentiation": keras_fds.differentiation.Forward(_CHUNK_SIZE.value)}


def hypergradients(problem, engine):
    """`{name: list}` over the whole horizon, in float64."""
    if engine in PEERS:
        peer = importlib.import_module(f"benchmarks.peers.{engine}")
        result = peer.Engine(problem, "float64").hypergradients()
    else:
        import keras
        import tensorflow as tf

        import keras_fds

        keras.config.set_floatx("float64")
        x, y, *held_out = problem.data()
        train = tf.data.Dataset.from_tensor_slices((x, y))
        train = train.apply(tf.data.experimental.assert_cardinality(problem.horizon))
        result = keras_fds.hypergradients(
            compiled(problem),
            train,
            tf.data.Dataset.from_tensors(tuple(held_out)),
            validation_training=True,
            **mode(problem, engine, x.nbytes + y.nbytes),
        )
    return {name: np.asarray(values).tolist() for name, values in result.items()}


def take_turns_with_peer(problem, engine):
    peer = importlib.import_module(f"benchmarks.peers.{engine}").Engine(problem, "float32")
    count = _STEPS_A_CALL.value
    peer.steps(count)
    say("ready")
    for _ in sys.stdin:
        start = time.perf_counter()
        peer.steps(count)
        say((time.perf_counter() - start) / count)


def scope():
    """The scope of the strategy, or of none."""
    import tensorflow as tf

    device = tf.config.list_logical_devices()[-1].name
    return {
        "none": contextlib.nullcontext,
        "one_device": lambda: tf.distribute.OneDeviceStrategy(device).scope(),
        "mirrored": lambda: tf.distribute.MirroredStrategy([device]).scope(),
    }[_DISTRIBUTION.value]()


def fit(problem, engine, outer_steps, callback):
    import keras_fds

    x, y, *held_out = problem.data()
    x, y = x.astype("float32").reshape(-1, *x.shape[2:]), y.reshape(-1)
    arguments = {"batch_size": problem.batch, "verbose": 0, "callbacks": [callback]}
    if engine == "stock":
        compiled(problem, learning=None).fit(x, y, epochs=outer_steps, **arguments)
        return
    with scope():
        model = compiled(problem, learning=engine != "plain")
    keras_fds.fit(
        model,
        x,
        y,
        epochs=_PASSES.value,
        outer_steps=outer_steps,
        validation_data=tuple(held_out),
        **mode(problem, engine),
        **arguments,
    )


def take_trials(problem):
    """Trains anew in every turn, as `trainers.trials` does."""
    from trainers.trials import CompiledLoop

    x, y, *held_out = problem.data()
    x, y = x.astype("float32").reshape(-1, *x.shape[2:]), y.reshape(-1)
    model, steps = compiled(problem), problem.horizon * _PASSES.value
    loop = CompiledLoop(model, (x, y), held_out, problem.batch, problem.batch)
    start, rng = model.get_weights(), np.random.default_rng(0)

    def trial():
        began = time.perf_counter()
        model.set_weights(start)
        model.optimizer.reset_slots()
        model.optimizer.begin_schedules(steps)
        for _ in range(_PASSES.value):
            loop.epoch(rng.permutation(len(x)))
        return (time.perf_counter() - began) / steps

    trial()
    say("ready")
    for _ in sys.stdin:
        say(trial())


def take_turns(problem, engine):
    import keras

    class Turns(keras.callbacks.Callback):
        """Waits for its turn at the start of each epoch but the first; reports at its end."""

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                say("ready")
            if epoch and not sys.stdin.readline():
                os._exit(0)
            self.times = [time.perf_counter()]

        def on_train_batch_end(self, batch, logs=None):
            self.times.append(time.perf_counter())

        def on_epoch_end(self, epoch, logs=None):
            seconds = (time.perf_counter() - self.times[0]) / (problem.horizon * _PASSES.value)
            if engine not in ("reverse", "checkpoints") and not _WHOLE.value:
                last = self.times[-max(3, len(self.times) // _NUM_RATE_BUCKETS.value) :]
                seconds = statistics.median(np.diff(last)) / _STEPS_A_CALL.value
            if epoch:
                say(seconds)

    fit(problem, engine, 10**6, Turns())


def measure_start(problem, engine):
    import keras

    class FirstCall(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            say(time.perf_counter() - start)
            os._exit(0)

    start = time.perf_counter()
    fit(problem, engine, 1, FirstCall())


def measure_again(problem, engine):
    """The second call of `hypergradients`, and the compiled calls in it, medians of five."""
    import tensorflow as tf

    import keras_fds

    x, y, *held_out = problem.data()
    arrays = tf.data.Dataset.from_tensor_slices((x.astype("float32"), y))
    train = arrays.apply(tf.data.experimental.assert_cardinality(problem.horizon))
    validation = tf.data.Dataset.from_tensors(tuple(held_out))
    model = compiled(problem)
    computing = []

    def timed(function):
        def call(*arguments):
            start = time.perf_counter()
            result = function(*arguments)
            computing[-1] += time.perf_counter() - start
            return result

        return call

    arguments = mode(problem, engine, x.nbytes + y.nbytes)
    modes = keras_fds.differentiation
    bound_class = modes.Reverse if engine == "reverse" else modes.Forward
    for name in ("run", "validate", "hypergradients"):
        setattr(bound_class, name, timed(getattr(bound_class, name)))
    calls = []
    for _ in range(6):
        computing.append(0.0)
        start = time.perf_counter()
        keras_fds.hypergradients(model, train, validation, **arguments)
        calls.append(time.perf_counter() - start)
    say(
        {
            "first call": calls[0],
            "second call": calls[1],
            "ratio": statistics.median(a / b for a, b in zip(calls[1:], computing[1:])),
        }
    )


def measure_peak(problem, engine):
    import keras

    fit(problem, engine, 1, keras.callbacks.Callback())
    say(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main(_):
    problem = problems.problem(
        _NETWORK.value, _BATCH.value, _HORIZON.value, _NUM_RATE_BUCKETS.value
    )
    engine, measure = _ENGINE.value, _MEASURE.value
    if _DTYPE_POLICY.value != "float32":
        import keras

        keras.config.set_dtype_policy(_DTYPE_POLICY.value)
    if measure == "hypergradients":
        say(hypergradients(problem, engine))
    elif measure == "start":
        measure_start(problem, engine)
    elif measure == "again":
        measure_again(problem, engine)
    elif measure == "peak":
        measure_peak(problem, engine)
    elif engine in PEERS:
        take_turns_with_peer(problem, engine)
    elif engine == "trial":
        take_trials(problem)
    else:
        take_turns(problem, engine)


if __name__ == "__main__":
    app.run(main)
