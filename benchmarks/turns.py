"""Workers that are timed in turn, so a drift of the machine's speed cancels in ratios."""

import json
import statistics
import subprocess
import sys
import tempfile


class Worker:
    """A `benchmarks.worker` process with its arguments."""

    def __init__(self, **arguments):
        flags = [f"--{name}={value}" for name, value in arguments.items()]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            command = " ".join(self.process.args)
            raise RuntimeError(f"No answer from {command}\n{self.errors.read()[-2000:]}")
        return json.loads(line)

    def turn(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self):
        self.process.kill()
        self.process.wait()


def ask(**arguments):
    """The single answer of a worker with these arguments."""
    worker = Worker(**arguments)
    try:
        return worker.answer()
    finally:
        worker.close()


def alternate(kinds, rounds):
    """Times every kind of step once per round.

    Args:
        kinds: `{name: arguments of a worker}`.
        rounds: Number of rounds.

    Returns:
        `{name: [seconds per step in each round]}`.
    """
    workers = {}
    try:
        for name, arguments in kinds.items():
            workers[name] = Worker(**arguments)
            # One after the other: a worker that compiles would slow down the others.
            assert workers[name].answer() == "ready"
        turns = [{name: worker.turn() for name, worker in workers.items()} for _ in range(rounds)]
        return {name: [turn[name] for turn in turns] for name in kinds}
    finally:
        for worker in workers.values():
            worker.close()


def medians_and_ratios(seconds, base):
    """`{name: {"milliseconds": median, "ratio": median of the rounds' ratios to the base}}`."""
    return {
        name: {
            "milliseconds": 1e3 * statistics.median(values),
            "ratio": statistics.median(a / b for a, b in zip(values, seconds[base])),
        }
        for name, values in seconds.items()
    }
