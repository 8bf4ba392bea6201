"""All tasks of docs/how_to/tasks.md, for one call of `trainers.compare`.

    python -m trainers.compare --config=configs/all_tasks.py --workdir=runs/all_tasks \
        --tasks=digits,low_data --seeds=5
    python -m trainers.compare --config=configs/all_tasks.py --workdir=runs/all_tasks \
        --config.tasks.characters.data_dir=TEXT.txt --config.tasks.cifar10_images.data_dir=FOLDER

Expected: hours; docs/results/comparison.md has estimates of every task.
Measured: no comparison yet.
"""

import importlib

import ml_collections

TASKS = (
    "digits",
    "fashion_mnist_lenet",
    "digits_wide",
    "fashion_mnist_wide",
    "data_cleaning",
    "data_sources",
    "low_data",
    "several_tasks",
    "characters",
    "cifar10_images",
)


def get_config():
    config = ml_collections.ConfigDict()
    config.tasks = {name: importlib.import_module(f"configs.{name}").get_config() for name in TASKS}
    return config
