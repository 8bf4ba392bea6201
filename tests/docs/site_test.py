"""The documentation is complete, short where it should be, and its links lead somewhere."""

import pathlib
import re
import runpy

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def in_nav(entries):
    """Yields the path of every page that the site's navigation lists."""
    for entry in entries:
        for target in entry.values():
            yield from in_nav(target) if isinstance(target, list) else [target]


def named(path):
    return path.relative_to(ROOT).as_posix()


def test_navigation_lists_every_page_once():
    listed = [each for each in in_nav(CONFIG["nav"]) if not each.startswith("../")]
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)


def test_readme_has_at_most_600_words():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 600


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=named)
def test_links_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$|`[^`\n]+`", "", text, flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", text)
    missing = [
        target
        for target in targets
        if not target.startswith("https://") and not (page.parent / target).exists()
    ]
    assert missing == []


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", *(page for page in PAGES if page.name != "design.md")],
    ids=named,
)
def test_lines_of_prose_are_at_most_100_characters(page):
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$|^\$\$.*?\$\$|^\|.*?$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert [line for line in prose.splitlines() if len(line) > 100] == []


# ------------------------------------------------------------------------------------ docstrings
@pytest.fixture
def as_markdown():
    pytest.importorskip("griffe")
    return runpy.run_path(str(DOCS / "_site" / "docstrings.py"))["as_markdown"]


DOCSTRING = """Does it.

Args:
    x, y: Arrays,
        of any length.
    **kwargs: More.

A paragraph between.

Returns:
    `{name: value}`.

Example:

>>> f(1)
2

And then.
"""

MARKDOWN = """Does it.

**Args**

- `x`, `y`: Arrays,
    of any length.
- `**kwargs`: More.

A paragraph between.

**Returns**

`{name: value}`.

**Example**

```pycon
>>> f(1)
2
```

And then.
"""


def test_docstrings_become_markdown(as_markdown):
    assert re.sub(r"\n{3,}", "\n\n", as_markdown(DOCSTRING)) == MARKDOWN
