"""The tasks: real inner loops of 300 to 1100 steps.

Two tasks are held back: no choice of a rule uses them. They run once, at the end, with
`--held_back`.
"""

import dataclasses
import hashlib

from benchmarks.outer_rules import data, models, optimizers
from benchmarks.outer_rules.inner_loop import InnerLoop

DATA = {each.__name__: each for each in (data.fashion_mnist, data.digits, data.python_topics)}
MODELS = {
    each.__name__: each
    for each in (models.perceptron, models.convolutional, models.recurrent, models.attention)
}
OPTIMIZERS = {each.__name__: each for each in (optimizers.sgd, optimizers.adamw)}


@dataclasses.dataclass(frozen=True)
class Task:
    """What an inner loop is made of.

    Args:
        data, model, optimizer: The name of the function that makes it.
        data_arguments, model_arguments: Its arguments.
        batch_size, horizon, num_validation: See `InnerLoop`.
        held_back: Whether it runs only once, at the end. Defaults to `False`.
    """

    data: str
    model: str
    optimizer: str
    data_arguments: dict
    model_arguments: dict
    batch_size: int
    horizon: int
    num_validation: int
    held_back: bool = False

    def build(self):
        """The `InnerLoop`."""
        data = DATA[self.data](**self.data_arguments)
        return InnerLoop(
            model=MODELS[self.model](**self.model_arguments, num_classes=data.num_classes),
            optimizer=OPTIMIZERS[self.optimizer](),
            data=data,
            batch_size=self.batch_size,
            horizon=self.horizon,
            num_validation=self.num_validation,
        )

    @property
    def fingerprint(self):
        """A short hash of the task: results of a task with another one do not count."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:8]


TASKS = {
    "fashion_perceptron": Task(
        data="fashion_mnist",
        data_arguments={"size": 12000},
        model="perceptron",
        model_arguments={"num_inputs": 196, "hidden": (64,)},
        optimizer="sgd",
        batch_size=100,
        horizon=550,
        num_validation=1000,
    ),
    "replaced_perceptron": Task(
        data="fashion_mnist",
        data_arguments={"size": 6500, "replaced": 0.3},
        model="perceptron",
        model_arguments={"num_inputs": 196, "hidden": (64,)},
        optimizer="sgd",
        batch_size=50,
        horizon=1100,
        num_validation=1000,
    ),
    "digits_convolutional": Task(
        data="digits",
        data_arguments={},
        model="convolutional",
        model_arguments={"channels": (8, 16), "pixels": 8},
        optimizer="sgd",
        batch_size=50,
        horizon=300,
        num_validation=300,
    ),
    "text_attention": Task(
        data="python_topics",
        data_arguments={},
        model="attention",
        model_arguments={"length": 16, "width": 24, "heads": 2},
        optimizer="adamw",
        batch_size=32,
        horizon=300,
        num_validation=500,
    ),
    "replaced_convolutional": Task(
        data="fashion_mnist",
        data_arguments={"size": 9000, "pixels": 7, "replaced": 0.2},
        model="convolutional",
        model_arguments={"channels": (8, 16), "pixels": 7},
        optimizer="adamw",
        batch_size=50,
        horizon=400,
        num_validation=1000,
        held_back=True,
    ),
    "digits_recurrent": Task(
        data="digits",
        data_arguments={"replaced": 0.1},
        model="recurrent",
        model_arguments={"num_inputs": 8, "width": 24},
        optimizer="adamw",
        batch_size=50,
        horizon=400,
        num_validation=300,
        held_back=True,
    ),
}
OPEN = tuple(name for name, task in TASKS.items() if not task.held_back)
HELD_BACK = tuple(name for name, task in TASKS.items() if task.held_back)
