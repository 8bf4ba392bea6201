"""Who may import whom, and who may touch internals."""

import ast
import importlib.util
import pathlib

import pytest

import keras_fds

ROOT = pathlib.Path(__file__).parents[1]

# Lowest first; a module imports only from levels below its own.
LEVELS = (
    ("hyperparameters", "optimizers", "_outer_rule", "_py_dataset", "_pruning", "_snippet"),
    ("_tensorflow", "_writes"),
    ("_data", "_divergence", "_files", "_pictures", "_search", "_trust_region"),
    ("outer", "schedules", "_vectorization", "_compilation", "_derivatives", "_products"),
    ("export",),
    ("_forward_mode",),
    ("_keras",),
    ("_scalars", "_redraw"),
    ("_fingerprint", "_learnable", "_stateless", "_models", "_tangents"),
    ("_inner_step",),
    ("_unroll", "_adjoint", "_layer_check", "_twin"),
    ("_differentiation", "_cost"),
    ("hyper_optimizer",),
    ("_checks", "_stock_fit"),
    ("_checkpoint",),
    ("_outer_loop",),
    ("training",),
    ("gradcheck",),
    ("callbacks",),
    ("__init__",),
)
LEVEL = {module: level for level, modules in enumerate(LEVELS) for module in modules}

KERAS_INTERNALS = {"_keras"}
TENSORFLOW_INTERNALS = {"_vectorization", "_compilation", "_forward_mode", "_products"}
TENSORFLOW_INTERNALS |= {"_tensorflow"}
FOREIGN = ("absl.flags", "absl.app", "ml_collections", "tensorflow_datasets", "configs", "trainers")
GLOBAL_STATE = ("matplotlib.pyplot",)

PACKAGE = sorted((ROOT / "keras_fds").glob("*.py"))
USERS = [
    path
    for folder in ("trainers", "examples", "benchmarks", "configs")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree, package=""):
    """Every imported dotted name, `from a import b` as `a.b`; functions' imports included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            module = importlib.util.resolve_name(relative, package) if node.level else node.module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def within(name, module):
    return name == module or name.startswith(module + ".")


def package_imports(tree):
    """Modules of keras_fds that are imported; `__init__` for names of the package itself."""
    for name in imports(tree, package="keras_fds"):
        if within(name, "keras_fds"):
            module = [*name.split("."), "__init__"][1]
            yield module if (ROOT / "keras_fds" / f"{module}.py").exists() else "__init__"


def attributes(tree):
    """Every dotted name in the code, such as `tf.python.ops`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def by_stem(path):
    return path.stem


def by_folder(path):
    return path.relative_to(ROOT).as_posix()


# ------------------------------------------------------------------------------ the checks' own
def test_imports_are_seen_wherever_they_are():
    tree = ast.parse(
        "import a.b as c, d\n"
        "from e import f, g as h\n"
        "from . import _i\n"
        "from ._j import k\n"
        "def l():\n    import m\n    from n.o import p\n"
    )
    assert sorted(imports(tree, "keras_fds")) == [
        *("a.b", "d", "e.f", "e.g", "keras_fds._i", "keras_fds._j.k", "m", "n.o.p"),
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("import keras_fds", "__init__"),
        ("from keras_fds import fit", "__init__"),
        ("from keras_fds import outer", "outer"),
        ("from keras_fds.outer import SignDescent", "outer"),
        ("import keras_fds._unroll", "_unroll"),
        ("from . import _data", "_data"),
    ],
)
def test_package_imports_are_told_by_module(line, expected):
    assert list(package_imports(ast.parse(line))) == [expected]


# ---------------------------------------------------------------------------------- the package
@pytest.mark.parametrize("path", PACKAGE, ids=by_stem)
def test_imports_go_down_only(path):
    assert path.stem in LEVEL, f"give {path.stem} a level in this test and in docs/design.md"
    level = LEVEL[path.stem]
    upward = [name for name in package_imports(parse(path)) if LEVEL.get(name, 99) >= level]
    assert upward == []


def test_lowest_modules_import_nothing_of_the_package():
    for path in PACKAGE:
        if path.stem in LEVELS[0]:
            assert list(package_imports(parse(path))) == [], path.stem


def test_one_file_opens_forward_accumulators():
    mentioning = [
        by_folder(path)
        for path in PACKAGE + USERS
        if "ForwardAccumulator(" in path.read_text(encoding="utf-8")
    ]
    assert mentioning == ["keras_fds/_tangents.py"]


@pytest.mark.parametrize("path", PACKAGE + USERS, ids=by_folder)
def test_internals_of_keras_and_tensorflow_stay_in_their_files(path):
    tree = parse(path)
    inside = path.parent.name == "keras_fds"
    names = list(imports(tree)) + list(attributes(tree))
    if not (inside and path.stem in KERAS_INTERNALS):
        assert [name for name in names if within(name, "keras.src")] == []
    if not (inside and path.stem in TENSORFLOW_INTERNALS):
        private = ("tensorflow.python", "tf.python")
        assert [name for name in names if any(within(name, p) for p in private)] == []


@pytest.mark.parametrize("path", PACKAGE, ids=by_stem)
def test_package_does_not_know_its_programs(path):
    unwanted = FOREIGN + GLOBAL_STATE
    names = imports(parse(path))
    assert [name for name in names if any(within(name, module) for module in unwanted)] == []


# ------------------------------------------------------------------------- programs and examples
@pytest.mark.parametrize("path", USERS, ids=by_folder)
def test_programs_use_public_names_only(path):
    tree = parse(path)
    used = {name for name in imports(tree) if within(name, "keras_fds")}
    used |= {name for name in attributes(tree) if within(name, "keras_fds")}
    public = [*keras_fds.__all__, "__version__"]
    hidden = [
        name
        for name in used - {"keras_fds"}
        if name.split(".")[1] not in public or "._" in name.replace(".__version__", "")
    ]
    assert hidden == []
