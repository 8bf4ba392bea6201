"""Figure 1 of the paper: WRN-16-1 on CIFAR-10, horizons of ten epochs, trained for 50.

Seven learning rates, a momentum and a weight decay from zero; the paper's rule, clipping, batches,
augmentation and validation. `methods` are the paper's, this library's default rule, the greedy
method HD and a tuned cosine decay.

    python -m trainers.search --config=configs/figure_1.py --workdir=runs/figure_1-search
    python -m trainers.train --config=configs/figure_1.py \
        --schedules=runs/figure_1-search/schedules.json --workdir=runs/figure_1-train
    python -m trainers.compare --config=configs/figure_1.py --workdir=runs/figure_1 --seeds=3
    python -m trainers.figures --figure=1 --results=runs/figure_1

On a folder of images: --config.dataset=image_folder --config.data_dir=FOLDER.

Expected: ten outer steps in forward mode, 91 epochs of 186 inner steps, each about 20 plain ones.
Published: the regret of the paper's rule is about 0 after 2.5 GPU hours, that of HD 8.6 points.
Measured: see docs/results/paper.md, with what two cores can run.
"""

from configs import digits
from trainers import methods

NUMBERS = ({"name": "learning_rate"}, {"name": "momentum"}, {"name": "weight_decay"})
GRID = {
    "learning_rate": (0.01, 0.03, 0.1, 0.3),
    "momentum": (0.9,),
    "weight_decay": (0.0, 5e-4, 1e-3),
}


def get_config():
    config = digits.get_config()
    config.dataset = "cifar10"
    config.augmentation = "crop_flip"
    config.network = "wrn_16_1"
    config.batch_size = 256
    config.epochs = (1, 10)
    config.outer_steps = 10
    config.validation_split = 0.05
    config.validation_batch_size = 500
    config.resample_validation = "outer_step"
    config.validation_training = True
    config.optimizer = {"name": "keras_fds.optimizers.SGD", "clipvalue": 3.0}
    config.tangent_clipvalue = 1.0
    config.differentiation = "forward"
    config.hyperparameters = [
        {"name": "learning_rate", "num_buckets": 7, "step_size": 0.1},
        {"name": "momentum", "step_size": 0.1},
        {"name": "weight_decay", "step_size": 3e-4},
    ]
    config.outer = {"name": "SignDescent"}
    config.train_epochs = 50
    config.train_seeds = 1
    config.methods = {
        "paper": {},
        "greedy": methods.greedy(epochs=10, hyperparameters=NUMBERS),
        "default_rule": methods.default_rule(epochs=10),
        "cosine": methods.decay_grid(epochs=10, **GRID),
    }
    return config
