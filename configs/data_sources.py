"""Twenty sources of data, of which ten are bad: a weight for each source.

The perceptron of `configs/data_cleaning.py` on 5,000 images of MNIST, 250 of each source;
nine of ten labels of a bad source are wrong. Black boxes choose the same twenty weights.

    python -m trainers.prepare_data --dataset=mnist
    python -m trainers.search --config=configs/data_sources.py --workdir=runs/data_sources
    python -m trainers.train --config=configs/data_sources.py \
        --schedules=runs/data_sources/schedules.json --workdir=runs/data_sources-train
    python -m trainers.compare --config=configs/data_sources.py --workdir=runs/sources-compare

Expected: two minutes a search on two cores.
Measured: see docs/results/comparison.md.
"""

from configs import data_cleaning


def get_config():
    config = data_cleaning.get_config()
    config.task = "trainers.tasks.data_sources"
    config.hyperparameters = [{"name": "sample_weight", "max_value": 2.0}]
    return config
