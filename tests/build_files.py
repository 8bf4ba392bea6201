"""The BUILD files: one per folder, one target per file, with the dependencies it imports.

    python -m tests.build_files

writes them anew. `build_files_test.py` compares them with what stands here.
"""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("keras_fds", "trainers", "configs", "benchmarks", "examples", "tests")
PROGRAMS = ("trainers", "benchmarks", "examples")
# Names of the package as its users know them.
ALIASES = ("keras_fds", "trainers/search", "trainers/train", "trainers/prepare_data")
# What tests read beside the folders.
ROOT_FILES = ("BUILD", "LICENSE", "Makefile", "setup.py")
ROOT_PATTERNS = ("*.cff", "*.in", "*.lock", "*.md", "*.toml", "*.yml", "docs/**")
HEADER = "# Written by `python -m tests.build_files` from the imports of the files.\n"


def sources():
    """All Python files, as paths relative to the root."""
    return sorted(
        path.relative_to(ROOT)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if "runs" not in path.parts
    )


def label(path):
    """The label of a file's target."""
    return f"//{path.parent.as_posix()}:{path.stem}"


def in_order(labels):
    """Labels in the order that Bazel's formatter `buildifier` puts them in."""
    return sorted(labels, key=lambda label: label.split(":"))


def imported(path, files):
    """The files of this repository that a file imports."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    found = set()
    for name in names:
        parts = pathlib.PurePosixPath(*name.split("."))
        for candidate in (parts.with_suffix(".py"), parts / "__init__.py"):
            if pathlib.Path(candidate) in files:
                found.add(pathlib.Path(candidate))
    # Python runs the `__init__` of every folder on the way.
    for each in list(found):
        for folder in each.parents:
            if folder / "__init__.py" in files:
                found.add(folder / "__init__.py")
    # A package that imports its own files is known by the files alone.
    inside = {each for each in found if each.name == "__init__.py" and each.parent in path.parents}
    return found - inside - {path}


def rule(path, files):
    """The text of a file's target."""
    is_test = path.name.endswith("_test.py")
    text = (ROOT / path).read_text(encoding="utf-8")
    is_program = path.parts[0] in PROGRAMS and '__name__ == "__main__"' in text
    kind = "pytest_test" if is_test else "py_binary" if is_program else "py_library"
    lines = [f"    name = {path.stem!r},", f"    srcs = [{path.name!r}],"]
    if is_test and ("__file__" in text or "sys.executable" in text):
        lines.append("    data = ['//:all_files'],")
    elif path.parts[0] == "trainers" and is_program:
        lines.append("    data = ['//configs:all_files'],")
    elif path == pathlib.Path("trainers/report.py"):
        lines.append("    data = ['//trainers:all_files'],")
    deps = in_order(map(label, imported(path, files)))
    if len(deps) == 1:
        lines.append(f"    deps = [{deps[0]!r}],")
    elif deps:
        lines += ["    deps = [", *(f"        {each!r}," for each in deps), "    ],"]
    return "\n".join([f"{kind}(", *lines, ")\n"]).replace("'", '"')


def build_files():
    """`{path of a BUILD file: its text}`."""
    files, texts = sources(), {}
    known = set(files)
    for folder in sorted({path.parent for path in files}):
        own = [path for path in files if path.parent == folder]
        rules = [rule(path, known) for path in own]
        kinds = sorted({text.split("(")[0] for text in rules} - {"pytest_test"})
        loads = []
        if kinds:
            names = ", ".join(f'"{kind}"' for kind in kinds)
            loads.append(f'load("@rules_python//python:defs.bzl", {names})')
        if any(text.startswith("pytest_test") for text in rules):
            loads.append('load("//tests:pytest.bzl", "pytest_test")')
        exports = ['exports_files(["pytest_main.py"])\n'] if folder == pathlib.Path("tests") else []
        group = 'filegroup(\n    name = "all_files",\n    srcs = glob(["**"]),\n)\n'
        visible = 'package(default_visibility = ["//visibility:public"])\n'
        texts[folder / "BUILD"] = "\n".join(
            [HEADER, "\n".join(loads) + "\n", visible, *exports, group, *rules]
        )
    groups = in_order(f"//{path.parent.as_posix()}:all_files" for path in texts)
    aliases = []
    for name in ALIASES:
        target = f"//{name}" if "/" not in name else f"//{name.replace('/', ':')}"
        actual = f"//{name}:__init__" if "/" not in name else target
        short = name.rpartition("/")[2]
        aliases.append(f'alias(\n    name = "{short}",\n    actual = "{actual}",\n)\n')
    texts[pathlib.Path("BUILD")] = "\n".join(
        [
            HEADER,
            'package(default_visibility = ["//visibility:public"])\n',
            'licenses(["notice"])\n',
            'exports_files([\n    "LICENSE",\n    "pyproject.toml",\n])\n',
            "\n".join(
                [
                    "filegroup(",
                    '    name = "all_files",',
                    "    srcs = glob([",
                    *(f'        "{pattern}",' for pattern in ROOT_PATTERNS),
                    "    ]) + [",
                    *(f'        "{file}",' for file in ROOT_FILES),
                    *(f'        "{group}",' for group in groups),
                    "    ],",
                    ")\n",
                ]
            ),
            *aliases,
        ]
    )
    return texts


if __name__ == "__main__":
    for path, text in build_files().items():
        (ROOT / path).write_text(text, encoding="utf-8")
