"""What a user types stays as documented: names, signatures, docstrings, imports."""

import doctest
import importlib
import inspect
import json
import pathlib
import re
import subprocess
import sys
import types

import keras
import numpy as np
import pytest

import keras_fds
from keras_fds.differentiation import Mode

ROOT = pathlib.Path(__file__).parents[1]

NAMES = [
    "BucketedSchedule",
    "HyperOptimizer",
    "HypergradientCheck",
    "Hyperparameter",
    "callbacks",
    "check_hypergradients",
    "differentiation",
    "export",
    "fit",
    "fit_online",
    "hypergradients",
    "load_schedules",
    "noise",
    "optimizers",
    "outer",
    "save_schedules",
]
SUBMODULES = {
    "callbacks": ["Checkpoint", "ScheduleExport", "TensorBoard", "draw_schedules"],
    "differentiation": ["Forward", "Reverse"],
    "export": ["keras_schedules", "python_snippet"],
    "noise": [
        "NoiseEstimate",
        "Sharing",
        "best_steps",
        "error_of",
        "estimate",
        "measure_sharing",
        "sharing_bound",
    ],
    "optimizers": ["SGD"],
    "outer": [
        "BayesianOptimization",
        "Descent",
        "Observation",
        "Problem",
        "Proposal",
        "Rule",
        "SignDescent",
    ],
}

# Where `keras_fds.fit` differs from `keras.Model.fit`, and why.
ADDED_TO_FIT = {
    "differentiation": "forward or reverse mode",
    "seed": "what outer steps derive from, so that one can be run again",
    "reverse_memory": "what reverse mode may keep",
    "parallel": "what several workers do at the same time",
    "divergence_factor": "a run that diverges is given up",
    "model": "a function, not a method",
    "budget": "what the outer loop may cost",
    "outer_steps": "the length of the outer loop",
    "validation_training": "the paper's validation in training mode",
    "initial_weights": "every outer step restarts",
    "resample_validation": "what is held out may be drawn, once or in every outer step",
    "resplit": "the old name of resample_validation",
    "adjoint_memory": "the old name of reverse_memory",
}
ADDED_TO_FIT_ONLINE = {
    "model": "a function, not a method",
    "tangent_decay": "HD, MARTHE or RTHO",
    "outer_optimizer": "what moves the hyperparameters",
    "objective": "the loss that has the hypergradients",
    "resample_validation": "what is held out may be drawn",
    "seed": "what is drawn and shuffled derives from it",
    "divergence_factor": "a training that diverges is given up",
}


def public_objects():
    """`(dotted name, object)` of every public function and class."""
    for name in keras_fds.__all__:
        value = getattr(keras_fds, name)
        if isinstance(value, types.ModuleType):
            for inner in defined_in(value):
                yield f"{name}.{inner}", getattr(value, inner)
        else:
            yield name, value


def defined_in(module):
    """Public names that a module lists, or else itself defines."""
    return getattr(module, "__all__", None) or sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    )


def arguments(value):
    return [name for name in inspect.signature(value).parameters if name != "self"]


OBJECTS = dict(public_objects())
CLASSES = {name: value for name, value in OBJECTS.items() if inspect.isclass(value)}
SERIALIZABLE = {name: value for name, value in CLASSES.items() if hasattr(value, "get_config")}


# ---------------------------------------------------------------------------------------- names
def test_public_names():
    assert sorted(keras_fds.__all__) == NAMES
    assert all(hasattr(keras_fds, name) for name in keras_fds.__all__)
    assert len(set(keras_fds.__all__)) == len(keras_fds.__all__)


@pytest.mark.parametrize("name", SUBMODULES)
def test_public_names_of_submodules(name):
    module = importlib.import_module(f"keras_fds.{name}")
    assert defined_in(module) == SUBMODULES[name]
    assert sorted(getattr(module, "__all__", SUBMODULES[name])) == SUBMODULES[name]


def test_nothing_else_looks_public():
    extra = {
        name
        for name, value in vars(keras_fds).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert extra <= set(NAMES)


def test_version_has_three_numbers():
    assert re.fullmatch(r"\d+\.\d+\.\d+", keras_fds.__version__)


# ---------------------------------------------------------------------------------- docstrings
@pytest.mark.parametrize("name", OBJECTS)
def test_docstring_says_what_it_is_and_explains_every_argument(name):
    value = OBJECTS[name]
    docstring = inspect.getdoc(value) or ""
    assert re.match(r"[A-Z`].*\.$", docstring.split("\n\n")[0], re.DOTALL)
    if not arguments(value):
        return
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring, re.DOTALL | re.MULTILINE)
    assert section, "no Args section"
    missing = [a for a in arguments(value) if not re.search(rf"\b{a}\b", section[1])]
    assert missing == []


@pytest.mark.parametrize("name", OBJECTS)
def test_docstring_has_an_example(name):
    docstring = inspect.getdoc(OBJECTS[name]) or ""
    assert re.search(r"^Examples?:\n\n>>> ", docstring, re.MULTILINE)


@pytest.mark.parametrize("name", CLASSES)
def test_public_methods_have_docstrings(name):
    of_keras = {
        attribute
        for base in CLASSES[name].__mro__
        if not base.__module__.startswith("keras_fds")
        for attribute in vars(base)
    }
    undocumented = [
        attribute
        for attribute, value in vars(CLASSES[name]).items()
        if not attribute.startswith("_")
        and attribute not in of_keras | {"get_config", "from_config"}
        and (callable(value) or isinstance(value, property))
        and not inspect.getdoc(value)
    ]
    assert undocumented == []


@pytest.mark.parametrize(
    "name",
    [
        "BucketedSchedule",
        "HyperOptimizer",
        "Hyperparameter",
        "export.keras_schedules",
        "export.python_snippet",
        "noise.NoiseEstimate",
        "noise.Sharing",
        "noise.best_steps",
        "noise.error_of",
        "noise.estimate",
        "noise.measure_sharing",
        "noise.sharing_bound",
        "optimizers.SGD",
        "outer.SignDescent",
        "outer.Descent",
        "outer.BayesianOptimization",
        "outer.Observation",
        "outer.Problem",
        "outer.Proposal",
        "outer.Rule",
    ],
)
def test_examples_run(name):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    names = {**vars(keras_fds), **vars(keras_fds.outer), **vars(keras_fds.noise)}
    names.update(keras_fds=keras_fds, keras=keras, np=np, model=model)
    example = doctest.DocTestParser().get_doctest(
        inspect.getdoc(OBJECTS[name]), names, name, None, None
    )
    assert example.examples
    results = doctest.DocTestRunner().run(example)
    assert results.failed == 0


# ---------------------------------------------------------------------------------------- fit
@pytest.mark.parametrize(
    ("name", "added"), [("fit", ADDED_TO_FIT), ("fit_online", ADDED_TO_FIT_ONLINE)]
)
def test_fit_takes_what_model_fit_takes(name, added):
    mine = inspect.signature(OBJECTS[name]).parameters
    stock = dict(inspect.signature(keras.Model.fit).parameters)
    del stock["self"]
    assert set(mine) - set(stock) == set(added)
    assert set(stock) <= set(mine)
    shared = [name for name in mine if name in stock]
    assert shared == [name for name in stock if name in mine]
    for name in shared:
        assert mine[name].default == stock[name].default, name
        assert mine[name].kind == stock[name].kind, name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "Hyperparameter",
            "(name, num_buckets=1, initial=None, step_size=0.1, min_value=None, max_value=None, "
            "scale='linear', smoothing_window=None, interpolation='constant', "
            "breadth=None, groups=None, each=False, shape=None)",
        ),
        (
            "HyperOptimizer",
            "(optimizer, hyperparameters, outer=None, tangent_clipvalue=None, "
            "tangents_per_pass=None, name=None)",
        ),
        (
            "hypergradients",
            "(model, train_data, validation_data, validation_training=False, "
            "differentiation='forward', reverse_memory=None, per_step=False, "
            "dtype=None, adjoint_memory=None)",
        ),
        (
            "check_hypergradients",
            "(model, train_data, validation_data, make_model=None, validation_training=False, "
            "tolerance=1e-05, verbose=True)",
        ),
        ("BucketedSchedule", "(values, horizon, interpolation='constant')"),
        ("save_schedules", "(path, schedules)"),
        ("load_schedules", "(path)"),
        ("export.keras_schedules", "(schedules)"),
        ("export.python_snippet", "(schedules, optimizer)"),
        ("noise.best_steps", "(noise, drift, correlation=0.0)"),
        ("noise.error_of", "(estimates, hypergradients)"),
        ("noise.estimate", "(hypergradients)"),
        ("noise.measure_sharing", "(hypergradients, num_buckets=None)"),
        ("noise.sharing_bound", "(noise, drift, correlation, steps)"),
        ("outer.SignDescent", "(shrink=0.5)"),
        ("outer.Descent", "(mean_decay=0.9, square_decay=0.99)"),
        ("outer.BayesianOptimization", "(caution=1.0, least_gain=0.003)"),
        (
            "optimizers.SGD",
            "(learning_rate=0.01, momentum=0.0, weight_decay=0.0, name='sgd', **kwargs)",
        ),
    ],
)
def test_signatures(name, expected):
    signature = inspect.signature(OBJECTS[name])
    plain = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
    assert str(inspect.Signature(plain)) == expected


# --------------------------------------------------------------------------------------- types
def functions():
    """`{dotted name: function}` of what is public: functions, `__init__`, methods and properties.

    Of the modes it is `__init__` alone: the rest is a contract within the package.
    """
    found = {}
    for name, value in OBJECTS.items():
        members = vars(value) if inspect.isclass(value) else {}
        for attribute, member in members.items():
            function = member.fget if isinstance(member, property) else member
            is_public = not attribute.startswith("_") and not issubclass(value, Mode)
            documented = is_public and getattr(function, "__doc__", None)
            if inspect.isfunction(function) and (attribute == "__init__" or documented):
                found[f"{name}.{attribute}"] = function
        if not members:
            found[name] = value
    return found


FUNCTIONS = functions()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_all_that_is_public_has_types(name):
    signature = inspect.signature(FUNCTIONS[name])
    without = [
        each.name
        for each in signature.parameters.values()
        if each.name != "self" and each.annotation is each.empty
    ]
    assert without == []
    assert signature.return_annotation is not signature.empty


def test_the_package_says_that_it_has_types():
    assert (pathlib.Path(keras_fds.__file__).parent / "py.typed").exists()


# -------------------------------------------------------------------------------- serialisation
@pytest.mark.parametrize("name", SERIALIZABLE)
def test_serializable_classes_are_registered(name):
    value = SERIALIZABLE[name]
    registered = f"keras_fds>{value.__name__}"
    assert keras.saving.get_registered_name(value) == registered
    assert keras.saving.get_registered_object(registered) is value


def test_all_that_can_be_configured_is_among_them():
    expected = {
        "BucketedSchedule",
        "HyperOptimizer",
        "Hyperparameter",
        "SGD",
        "SignDescent",
        "BayesianOptimization",
    }
    assert expected <= {value.__name__ for value in SERIALIZABLE.values()}


def test_nothing_is_registered_under_another_package():
    for registered, value in keras.saving.get_custom_objects().items():
        if value.__module__.split(".")[0] == "keras_fds":
            assert registered == f"keras_fds>{value.__name__}"


# --------------------------------------------------------------------------------------- import
IMPORT = """
import sys, time, keras, tensorflow
before = set(sys.modules)

def attributes():
    # Of the modules of Keras and TensorFlow, and of the classes in them.
    found = {}
    for module in sorted(before):
        if module.split(".")[0] in ("keras", "tensorflow"):
            for name, value in dict(vars(sys.modules[module])).items():
                found[module, name] = value
                for each in vars(value) if isinstance(value, type) else ():
                    found[module, name, each] = vars(value)[each]
    return found

stock = attributes()
for stream in (sys.stdout, sys.stderr):
    print("BEFORE", file=stream, flush=True)
start = time.process_time()
import keras_fds
seconds = time.process_time() - start
for stream in (sys.stdout, sys.stderr):
    print("AFTER", file=stream, flush=True)
import json
from absl import flags
print(json.dumps({
    "imported": sorted(set(sys.modules) - before),
    "seconds": seconds,
    "changed": [key for key, value in attributes().items() if stock.get(key, key) is not value],
    "flags": [str(module) for module in flags.FLAGS.flags_by_module_dict()],
}))
"""


@pytest.fixture(scope="module")
def import_process():
    """A process that imports Keras and TensorFlow, which print and import a lot, then keras_fds."""
    return subprocess.run(
        [sys.executable, "-c", IMPORT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


@pytest.fixture
def report(import_process):
    return json.loads(import_process.stdout.splitlines()[-1])


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_import_prints_nothing(import_process, stream):
    assert "BEFORE\nAFTER\n" in getattr(import_process, stream)


@pytest.mark.parametrize("unwanted", ["configs", "ml_collections", "tensorflow_datasets"])
def test_import_brings_only_what_it_needs(report, unwanted):
    assert "keras_fds" in report["imported"]
    assert unwanted not in report["imported"]


def test_import_changes_nothing_of_keras_and_tensorflow(report):
    assert [key for key in report["changed"] if key[1] != "__warningregistry__"] == []


def test_import_is_quick(report):
    assert report["seconds"] < 0.3


def test_import_defines_no_flags(report):
    assert [module for module in report["flags"] if "keras_fds" in module] == []
