"""Fills the tables of docs/results/comparison.md: `python -m benchmarks.comparison`.

    python -m trainers.compare --config=configs/all_tasks.py --workdir=runs/all_tasks --tasks=digits
    python -m benchmarks.comparison --add=runs/all_tasks/digits --name=digits

`--add` takes over the results of a comparison (`trainers.compare`), without what was learned, and
its pictures into `--comparisons`. Then every block of the page between `<!-- table: NAME -->` and
`<!-- end -->` is written anew; those without results stay as they are.
"""

import json
import pathlib
import re

from absl import app, flags

from trainers import records, workdirs

_ADD = flags.DEFINE_string("add", None, "The folder of a comparison to take over.")
_NAME = flags.DEFINE_string("name", None, "The block that its table is for.")
_OUTPUT = flags.DEFINE_string(
    "comparisons", "benchmarks/results/comparison", "Folder for the results of all comparisons."
)
_PAGE = flags.DEFINE_string("page", "docs/results/comparison.md", "The page to fill.")

_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def add(folder, name, output):
    """Takes over a comparison, without what was learned: vectors are long.

    Args:
        folder: Of `trainers.compare`, a `pathlib.Path`.
        name: Of the block of the page.
        output: Folder for `NAME.json` and `NAME.png`, a `pathlib.Path`.

    Raises:
        ValueError: The folder holds no comparison.
    """
    if not (folder / "results.json").exists():
        raise ValueError(f"There is no comparison in {folder}: it has no results.json.")
    content = json.loads((folder / "results.json").read_text())
    for each in content["records"]:
        del each["schedules"]
    output.mkdir(parents=True, exist_ok=True)
    workdirs.write_json(output / f"{name}.json", content)
    figure = records.draw_course(content["records"])
    figure.savefig(output / f"{name}.png", dpi=110)


def filled(page, output):
    """The page with the tables of all results.

    Args:
        page: Its text.
        output: See `add`.

    Raises:
        ValueError: Results have no block in the page.
    """
    found = {path.stem: json.loads(path.read_text()) for path in output.glob("*.json")}
    lost = found.keys() - {match[2] for match in _BLOCK.finditer(page)}
    if lost:
        raise ValueError(f"The page has no block for {', '.join(sorted(lost))}.")

    def block(match):
        begin, name, before, end = match.groups()
        return f"{begin}{_section(name, found[name]) if name in found else before}{end}"

    return _BLOCK.sub(block, page)


def _section(name, content):
    limit = content.get("seconds")
    budget = f"{limit:g} seconds" if limit else f"{content['config']['budget']:g} plain trainings"
    return (
        f"{budget} a search; {content['machine']}.\n\n{records.table(content['records'])}\n\n"
        f"![Accuracy and regret against time](../../benchmarks/results/comparison/{name}.png)\n"
    )


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    output, page = pathlib.Path(_OUTPUT.value), pathlib.Path(_PAGE.value)
    if (_ADD.value is None) != (_NAME.value is None):
        raise app.UsageError("Pass --add and --name together.")
    if _ADD.value:
        add(pathlib.Path(_ADD.value), _NAME.value, output)
    page.write_text(filled(page.read_text(), output))
    print(f"Filled {page}.")


if __name__ == "__main__":
    app.run(main)
