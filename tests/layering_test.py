"""Who may import whom, and who may touch internals."""

import ast
import graphlib
import importlib.util
import pathlib

import pytest

import keras_fds

ROOT = pathlib.Path(__file__).parents[1]

# Rooms, a folder or a file of the root, lowest first: they import only from floors below their own.
FLOORS = (
    ("numbers", "files", "internals"),
    ("data",),
    ("outer", "functional", "noise", "optimizers", "schedules"),
    ("hyperparameters", "export", "differentiation"),
    ("hyper_optimizer",),
    ("search",),
    ("callbacks",),
    ("training", "gradcheck"),
    ("__init__",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

FOREIGN = ("absl.flags", "absl.app", "ml_collections", "tensorflow_datasets", "configs", "trainers")
GLOBAL_STATE = ("matplotlib.pyplot",)

PACKAGE = sorted((ROOT / "keras_fds").rglob("*.py"))
FOLDERS = {path.parent.name for path in PACKAGE} - {"keras_fds"}
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


def room_of(path):
    """The room that a file of the package belongs to."""
    return path.stem if path.parent.name == "keras_fds" else path.parent.name


def rooms_imported(tree):
    """Rooms of keras_fds that are imported; `__init__` for names of the package itself."""
    for name in imports(tree, package="keras_fds"):
        if within(name, "keras_fds"):
            room = [*name.split("."), "__init__"][1]
            yield room if room in FLOOR else "__init__"


def attributes(tree):
    """Every dotted name in the code, such as `tf.python.ops`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)


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
        "a.b",
        "d",
        "e.f",
        "e.g",
        "keras_fds._i",
        "keras_fds._j.k",
        "m",
        "n.o.p",
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("import keras_fds", "__init__"),
        ("from keras_fds import fit", "__init__"),
        ("from keras_fds import outer", "outer"),
        ("from keras_fds.outer import SignDescent", "outer"),
        ("import keras_fds.differentiation.forward", "differentiation"),
        ("from . import data", "data"),
    ],
)
def test_rooms_imported_are_told(line, expected):
    assert list(rooms_imported(ast.parse(line))) == [expected]


# ---------------------------------------------------------------------------------- the package
def test_the_root_holds_ten_files_at_most_and_seven_floors_of_folders():
    files = {path.name for path in (ROOT / "keras_fds").glob("*.py")}
    assert len(files - {"__main__.py"}) <= 10
    assert len({FLOOR[folder] for folder in FOLDERS}) <= 7


@pytest.mark.parametrize("path", PACKAGE, ids=by_folder)
def test_imports_go_down_only(path):
    room = room_of(path)
    assert room in FLOOR, f"give {room} a floor in this test and in docs/design.md"
    others = [other for other in rooms_imported(parse(path)) if other != room]
    assert [other for other in others if FLOOR[other] >= FLOOR[room]] == []


@pytest.mark.parametrize("path", PACKAGE, ids=by_folder)
def test_nobody_reaches_past_the_init_of_a_folder(path):
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and within(node.module or "", "keras_fds"):
            _, *parts = node.module.split(".")
            foreign = parts[:1] != [room_of(path)] and path.name != "__init__.py"
            if foreign and parts and parts[0] in FOLDERS:
                assert len(parts) == 1, ast.unparse(node)


def test_no_files_import_each_other_in_a_circle():
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE
    }
    below = {
        name: {
            found
            for each in imports(parse(path))
            for found in (each, each.rpartition(".")[0])
            if found in files and found != name and not within(name, found)
        }
        for name, path in files.items()
    }
    graphlib.TopologicalSorter(below).prepare()


def test_one_file_opens_forward_accumulators():
    mentioning = [
        by_folder(path)
        for path in PACKAGE + USERS
        if "ForwardAccumulator(" in path.read_text(encoding="utf-8")
    ]
    assert mentioning == ["keras_fds/differentiation/jacobian_products.py"]


@pytest.mark.parametrize("path", PACKAGE + USERS, ids=by_folder)
def test_internals_of_keras_and_tensorflow_stay_in_their_files(path):
    tree = parse(path)
    names = list(imports(tree)) + list(attributes(tree))
    inside = path.parent == ROOT / "keras_fds" / "internals"
    if not (inside and path.stem.startswith("keras_")):
        assert [name for name in names if within(name, "keras.src")] == []
    if not (inside and path.stem.startswith("tf_")):
        private = ("tensorflow.python", "tf.python")
        assert [name for name in names if any(within(name, p) for p in private)] == []


@pytest.mark.parametrize("path", PACKAGE, ids=by_folder)
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
    public = [*keras_fds.__all__, "__version__", "files"]  # They write files as the package does.
    hidden = [
        name
        for name in used - {"keras_fds"}
        if name.split(".")[1] not in public or "._" in name.replace(".__version__", "")
    ]
    assert hidden == []
