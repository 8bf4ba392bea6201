"""Docstrings in Google's style as Markdown, for the reference page."""

import re
import textwrap

import griffe

_SECTION = re.compile(r"^(Args|Returns|Raises|Example|Reference):[ \t]*(.*)$", re.MULTILINE)
_ITEM = re.compile(r"^(\*{0,2}\w+(?:,\s+\w+)*):\s+", re.MULTILINE)


class DocstringsAsMarkdown(griffe.Extension):
    """Rewrites every docstring before it is rendered."""

    def on_object(self, *, obj, **_):
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring):
    """A docstring as Markdown: sections become headings, arguments a list, examples code."""
    parts = _SECTION.split(docstring)
    lead, rest = parts[0], parts[1:]
    text = [_with_fences(lead).rstrip()]
    for title, first, body in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        if title == "Reference":
            text.append(f"**Reference.** {first}{body}".rstrip())
            continue
        indented, after = _split_indented(body)
        body = textwrap.dedent(f"{first}\n{indented}").strip()
        if title in ("Args", "Raises"):
            body = _as_list(body)
        text.append(f"**{title}**\n\n{_with_fences(body)}\n\n{_with_fences(after)}".rstrip())
    return "\n\n".join(text) + "\n"


def _split_indented(body):
    """The indented lines that a section begins with, and the text after them."""
    lines = body.strip("\n").split("\n")
    for number, line in enumerate(lines):
        if line and not line.startswith(" "):
            return "\n".join(lines[:number]), "\n".join(lines[number:])
    return "\n".join(lines), ""


def _as_list(body):
    """`name: text` items, of one name or several, as a Markdown list."""
    items = _ITEM.split(body)
    lines = [items[0]]
    for names, text in zip(items[1::2], items[2::2], strict=True):
        names = ", ".join(f"`{name}`" for name in re.split(r",\s+", names))
        lines.append(f"- {names}: " + _aligned(text))
    return "\n".join(lines).strip()


def _aligned(text):
    """The text of an item, whose lines but the first are indented by four."""
    first, _, rest = text.strip().partition("\n")
    return "\n".join([first, *textwrap.indent(textwrap.dedent(rest), "    ").splitlines()])


def _with_fences(text):
    """Examples with `>>>`, up to the next empty line, as code."""
    return re.sub(r"(?m)^>>> (?:.+\n?)+", lambda m: f"```pycon\n{m[0].rstrip()}\n```\n", text)
