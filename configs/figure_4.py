"""Figure 4 of the paper: WRN-16-1 on CIFAR-10, horizons of all 50 epochs.

Five learning rates, a momentum and a weight decay from zero; otherwise as `configs/figure_1.py`.

    python -m trainers.search --config=configs/figure_4.py --workdir=runs/figure_4-search
    python -m trainers.train --config=configs/figure_4.py \
        --schedules=runs/figure_4-search/schedules.json --workdir=runs/figure_4-train
    python -m trainers.compare --config=configs/figure_4.py --workdir=runs/figure_4 --seeds=3
    python -m trainers.figures --figure=4 --results=runs/figure_4

On a folder of images: --config.dataset=image_folder --config.data_dir=FOLDER.

Expected: ten outer steps in forward mode, 500 epochs of 186 inner steps, each about 20 plain ones.
Published: learning rates .15, .49, .28, .11, 0, momentum .277, weight decay 6.5e-4, with 89.1%
after 50 epochs; the greedy method HD has 78%.
Measured: see docs/results/paper.md, with what two cores can run.
"""

from configs import figure_1
from trainers import methods


def get_config():
    config = figure_1.get_config()
    config.epochs = (50,)
    config.tangent_clipvalue = 100.0
    config.hyperparameters = [
        {"name": "learning_rate", "num_buckets": 5, "step_size": 0.1},
        {"name": "momentum", "step_size": 0.3},
        {"name": "weight_decay", "step_size": 4e-4},
    ]
    config.methods = {
        "paper": {},
        "greedy": methods.greedy(epochs=50, hyperparameters=figure_1.NUMBERS),
        "default_rule": methods.default_rule(epochs=50),
        "cosine": methods.decay_grid(epochs=50, **figure_1.GRID),
    }
    return config
