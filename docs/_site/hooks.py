"""What the site's build adds to MkDocs: files from outside of docs/, and formulas as MathML."""

import html
import pathlib
import re

from latex2mathml import converter
from mkdocs.structure.files import File, InclusionLevel

ROOT = pathlib.Path(__file__).parents[2]
# Pages link to these by their path in the repository, as they do where the pages are read there.
_OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "benchmarks/results/results.md",
    "benchmarks/results/*.png",
    "benchmarks/results/outer_rules/results.png",
    "benchmarks/results/figure_*/*.png",
    "benchmarks/results/comparison/*.png",
    "configs/*.py",
    "examples/*.py",
)


def on_files(files, config):
    """Adds the files from outside of docs/ to the site."""
    for pattern in _OUTSIDE:
        for path in ROOT.glob(pattern):
            name = path.relative_to(ROOT).as_posix()
            file = File.generated(config, f"../{name}", abs_src_path=str(path))
            file.inclusion = InclusionLevel.INCLUDED
            file.dest_uri = name
            if path.suffix == ".md":
                file.dest_uri = f"{name.removesuffix('.md').lower()}/index.html"
            files.append(file)
    return files


def on_page_markdown(markdown, page, **_):
    """Lets pages from outside of docs/ link into it."""
    if page.file.src_uri.startswith("../"):
        return re.sub(r"\]\(docs/", "](/", markdown)
    return markdown


def on_page_content(content, **_):
    """Turns the formulas that `pymdownx.arithmatex` has marked into MathML: no script is needed."""
    content = re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', _inline, content, flags=re.S)
    return re.sub(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', _display, content, flags=re.S)


def _inline(match):
    return converter.convert(html.unescape(match[1]))


def _display(match):
    formula = converter.convert(html.unescape(match[1]), display="block")
    return f'<div class="formula">{formula}</div>'
