"""A worker process of `distribute_test.py`.

    python -m tests.distribute_worker FOLDER INDEX PORT PORT [KILLED | lenet]

writes what it found into FOLDER. Searches are done one after another; KILLED, such as "search 1",
names one of them and an outer step, at whose start the second worker kills itself.
"""

import json
import os
import pathlib
import signal
import sys


def make_strategy(own, ports):
    """The strategy of worker number `own`, before any other use of TensorFlow."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    addresses = [f"127.0.0.1:{port}" for port in ports]
    task = {"type": "worker", "index": own}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    return tf.distribute.MultiWorkerMirroredStrategy()


def main(folder, own, ports, killed_at):
    strategy = make_strategy(own, ports)
    import keras

    import keras_fds
    from tests import distribute_problem

    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    if killed_at == "lenet":
        found = distribute_problem.lenet(strategy)
        (folder / f"lenet_{own}.json").write_text(json.dumps(found))
        return
    if killed_at == "search 1":  # The first start.
        found = {
            mode: distribute_problem.hypergradients(mode, strategy)
            for mode in distribute_problem.MODES
        }
        (folder / f"hypergradients_{own}.json").write_text(json.dumps(found))
        found = distribute_problem.rounds(strategy, parallel="outer_steps")
        (folder / f"rounds_{own}.json").write_text(json.dumps(found))
        found = distribute_problem.rounds_of_dataset(strategy)
        (folder / f"whole_{own}.json").write_text(json.dumps(found))
    for name in ("search", "rounds_of_dataset"):

        def kill(outer_step, logs, name=name):
            if own == 1 and f"{name} {outer_step}" == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)

        callbacks = [
            keras_fds.callbacks.Checkpoint(folder / f"checkpoints_{name}"),
            keras_fds.callbacks.ScheduleExport(folder / f"{name}_results_{own}"),
            keras.callbacks.LambdaCallback(on_epoch_begin=kill),
        ]
        found = getattr(distribute_problem, name)(strategy, callbacks, verbose=2)
        (folder / f"{name}_{own}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    _, folder, own, *ports = sys.argv[:5]
    killed_at = sys.argv[5] if len(sys.argv) > 5 else None
    main(pathlib.Path(folder), int(own), ports, killed_at)
