"""Packaging of keras-fds: `pip install .`, or with extras `pip install ".[trainers]"`."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).resolve().parent


def _version():
    """Reads the version without importing the package, which would need TensorFlow."""
    text = (ROOT / "keras_fds" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError('keras_fds/__init__.py must have a line like: __version__ = "0.2.0"')
    return match.group(1)


def _long_description():
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


# TensorBoard has the number of its TensorFlow. The two locks pin either end of these ranges.
TENSORFLOW = ">=2.18,<2.22"
KERAS = ">=3.14,<3.16"
TRAINERS = [
    "importlib_resources",  # tensorflow-datasets imports it without declaring it
    "jinja2",
    "ml_collections",
    "scikit-learn",
    "tensorflow-datasets>=4.9.10",
]
OPTUNA = "optuna>=5,<6"
TEST = ["build", "hypothesis", "mypy", OPTUNA, "pytest", "pytest-xdist", "ruff", "setuptools>=77"]
DOCS = ["latex2mathml", "mkdocs-material", "mkdocstrings[python]"]

setuptools.setup(
    name="keras-fds",
    version=_version(),
    description="Learns hyperparameter schedules of compiled Keras models, by forward-mode "
    "differentiation with sharing.",
    long_description=_long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=setuptools.find_packages(include=["keras_fds*", "trainers*", "configs"]),
    package_data={"keras_fds": ["py.typed"], "trainers": ["templates/*.html"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py",
        "keras" + KERAS,
        "matplotlib",
        "numpy>=1.26",
        "scipy>=1.11",
        "tensorboard" + TENSORFLOW,
        "tensorflow" + TENSORFLOW,
        "threadpoolctl>=3.1",
    ],
    extras_require={
        "trainers": TRAINERS,
        "baselines": ["cmaes>=0.12", OPTUNA, *TRAINERS],
        "test": TEST + TRAINERS,
        "docs": DOCS,
        "gpu": ["tensorflow[and-cuda]" + TENSORFLOW],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
