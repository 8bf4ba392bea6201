"""Figure 3 of the paper: what sharing is worth, LeNet on MNIST, one epoch.

The learning rate of every step of one epoch, from zero: ten buckets (`shared`), a value for every
step (`unshared`), both by the paper's rule; this library's default rule; the greedy method HD; a
cosine decay tuned by a grid.

    python -m trainers.prepare_data --dataset=mnist [--manual_dir=FOLDER]
    python -m trainers.search --config=configs/figure_3_mnist.py --workdir=runs/figure_3-search
    python -m trainers.train --config=configs/figure_3_mnist.py \
        --schedules=runs/figure_3-search/schedules.json --workdir=runs/figure_3-train
    python -m trainers.compare --config=configs/figure_3_mnist.py --workdir=runs/figure_3_mnist
    python -m trainers.figures --figure=3 --results=runs/figure_3_mnist

Expected: about six minutes per seed on two cores.
Published: shared, unshared and cosine about 97%, greedy 92%.
Measured: see docs/results/paper.md.
"""

from configs import digits
from trainers import methods


def get_config():
    config = digits.get_config()
    config.dataset = "mnist"
    config.network = "lenet_valid"
    config.epochs = (1,)
    config.outer_steps = 10
    config.validation_split = 0.05
    config.validation_batch_size = 500
    config.resample_validation = "outer_step"
    config.optimizer = {"name": "keras_fds.optimizers.SGD", "clipvalue": 3.0}
    config.differentiation = "reverse"  # Its cost does not depend on the number of values.
    config.reverse_memory = 2**31
    config.hyperparameters = [{"name": "learning_rate", "num_buckets": 10, "step_size": 0.1}]
    config.outer = {"name": "SignDescent"}
    config.train_epochs = 1
    config.train_seeds = 2
    one_a_step = {"name": "learning_rate", "num_buckets": 446, "step_size": 0.1}
    config.methods = {
        "shared": {},
        "greedy": methods.greedy(epochs=1, hyperparameters=({"name": "learning_rate"},)),
        "unshared": {"hyperparameters": (one_a_step,)},
        "default_rule": methods.default_rule(epochs=1, constants=()),
        "cosine": methods.decay_grid(
            epochs=1, learning_rate=(0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
        ),
    }
    return config
