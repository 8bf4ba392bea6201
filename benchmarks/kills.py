"""Kills a search many times and compares its results with an uninterrupted one's, to the bit.

    python -m benchmarks.kills --kills=20

The digits search is killed (SIGKILL) at random moments of three kinds: some time after its start,
some time after an outer step, and while a file is being written. Each time it is started again.
When it finishes before the last kill, another search begins. Writes `kills.json`.
"""

import hashlib
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

from absl import app, flags

_KILLS = flags.DEFINE_integer("kills", 20, "Number of kills.", lower_bound=1)
_SEED = flags.DEFINE_integer("kill_seed", 0, "Seed of the random moments.")
_OUTPUT = flags.DEFINE_string("output", "benchmarks/results/kills.json", "File for the result.")
_FIELDS = flags.DEFINE_multi_string("field", [], "A field=value of the config to override.")

ROOT = pathlib.Path(__file__).parents[1]
KINDS = ("after the start", "after an outer step", "while a file is written")


def start(workdir, fields):
    """The search as a process of its own."""
    command = [sys.executable, "-m", "trainers.search", "--config=configs/digits.py"]
    command += [f"--workdir={workdir}", *(f"--config.{field}" for field in fields)]
    command += ["--checkpoint_minutes=0"]  # In forward mode: after every compiled call.
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **quiet)


def finish(process):
    """Waits for a search; a `RuntimeError` when it fails."""
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"The search ended with exit code {process.returncode}: {errors}")


def half_written(workdir):
    """The names of files that are being written."""
    folders = (workdir, workdir / "checkpoints")
    return [path.name for folder in folders for path in folder.glob("*.partial*")]


def outer_steps(workdir):
    """How many outer steps the newest checkpoint holds."""
    paths = (workdir / "checkpoints").glob("outer_step_*.npz")
    names = [path.stem for path in paths if ".partial" not in path.name]
    return max((int(name.split("_")[2]) for name in names), default=0)


def wait_for(process, condition):
    while process.poll() is None and not condition():
        time.sleep(0.0005)


def kill(process, workdir, kind, rng, seconds):
    """Kills a process at a moment of a kind; returns what was there, `None` if it ended before.

    Args:
        seconds: The time of an uninterrupted search.
    """
    begin, before = time.monotonic(), outer_steps(workdir)
    if kind == KINDS[0]:
        end = begin + rng.uniform(0, seconds / 2)
        wait_for(process, lambda: time.monotonic() > end)
    elif kind == KINDS[1]:
        wait_for(process, lambda: outer_steps(workdir) > before)
        time.sleep(rng.uniform(0, seconds / 12))
    else:
        for _ in range(rng.randint(1, 4)):
            wait_for(process, lambda: not half_written(workdir))
            wait_for(process, lambda: half_written(workdir))
    if process.poll() is not None:
        finish(process)
        return None
    process.kill()
    process.communicate()
    return {
        "kind": kind,
        "seconds": round(time.monotonic() - begin, 2),
        "outer_steps": [before, outer_steps(workdir)],
        "half_written": half_written(workdir),
    }


def curves(folder):
    """`{"run tag": [(step, digest), …]}` of all event files, in the order of the steps."""
    import tensorflow as tf

    found = {}
    for path in pathlib.Path(folder).rglob("events.out.tfevents.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                # The HParams plugin notes the time of day.
                content = value.tensor.SerializeToString() if "hparams" not in value.tag else b""
                points = found.setdefault(f"{path.parent.relative_to(folder)} {value.tag}", [])
                points.append((event.step, hashlib.sha256(content).hexdigest()[:8]))
    return {key: sorted(points) for key, points in found.items()}


def results(workdir):
    """The results of a search, as `{name: something to compare}`."""
    import keras

    import keras_fds  # noqa: F401, for Keras to know its classes

    workdir = pathlib.Path(workdir)
    names = ("config.json", "schedules.json", "history.csv", "schedules.png")
    model = keras.models.load_model(workdir / "model.keras")
    digest = hashlib.sha256()
    for variable in model.weights + model.optimizer.variables:
        digest.update(variable.numpy().tobytes())
    return {
        **{name: (workdir / name).read_bytes() for name in names},
        "model.keras": digest.hexdigest(),
        "tensorboard": curves(workdir / "tensorboard"),
        "half written": half_written(workdir),
    }


def differences(one, other):
    """The names of results that differ."""
    return [name for name in one if one[name] != other[name]]


def main(_):
    rng = random.Random(_SEED.value)
    kills = []
    compared = []
    with tempfile.TemporaryDirectory() as folder:
        whole = pathlib.Path(folder) / "whole"
        begin = time.monotonic()
        finish(start(whole, _FIELDS.value))
        seconds = time.monotonic() - begin
        expected = results(whole)
        while len(kills) < _KILLS.value:
            workdir, done = pathlib.Path(folder) / f"killed_{len(compared)}", False
            while not done and len(kills) < _KILLS.value:
                kind = KINDS[len(kills) % len(KINDS)]
                found = kill(start(workdir, _FIELDS.value), workdir, kind, rng, seconds)
                done = found is None
                kills += [] if done else [{"search": len(compared), **found}]
                print(kills[-1] if kills and not done else "finished", flush=True)
            if not done:
                finish(start(workdir, _FIELDS.value))
            compared.append(differences(expected, results(workdir)))
            print("different:", compared[-1], flush=True)
    content = {
        "fields": _FIELDS.value,
        "seconds_uninterrupted": round(seconds, 1),
        "compared": list(expected),
        "different": compared,
        "kills": kills,
    }
    path = pathlib.Path(_OUTPUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    assert not any(compared), compared
    print(f"{len(kills)} kills in {len(compared)} searches: all results identical to the bit.")


if __name__ == "__main__":
    app.run(main)
