"""A report as data, and what writes it: for the terminal, in Markdown, in LaTeX and as a page of HTML."""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup, escape
from tabulate import tabulate


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        header: Names of the columns; the first names the lines.
        lines: As many cells each.
        notes: Footnotes.
        prose: Whether its cells are sentences, which are broken into lines; else they are numbers.
    """

    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    prose: bool = False


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        text: What it shows.
        file: Path of the PNG file, relative to the workdir.
    """

    text: str
    file: str


@dataclasses.dataclass(frozen=True)
class Section:
    """One part of a report: tables, then words, then figures.

    Attributes:
        title: Its headline.
        tables: Any number.
        words: Paragraphs.
        pictures: Figures.
    """

    title: str
    tables: Sequence[Table] = ()
    words: Sequence[str] = ()
    pictures: Sequence[Picture] = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """A report; texts may hold names in `backquotes`.

    Attributes:
        title: Its headline.
        lead: Paragraphs before all sections.
        sections: Its parts.
        legend: What is explained -> the explanation.
    """

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]
    legend: dict[str, str]


def as_text(report: Report) -> str:
    """Tables and words, for a terminal."""
    parts = [*report.lead]
    for section in report.sections:
        parts.append(section.title)
        for table in section.tables:
            parts.append(tabulate(table.lines, table.header, disable_numparse=True))
            parts += ["\n".join(table.notes)] if table.notes else []
        parts += section.words
    return "\n\n".join(parts)


def as_markdown(report: Report) -> str:
    """The whole report; figures are linked."""
    parts = [f"# {report.title}", *map(_plain, report.lead)]
    for section in report.sections:
        parts.append(f"## {_plain(section.title)}")
        for table in section.tables:
            header, *lines = [[_cell(cell) for cell in line] for line in (table.header, *table.lines)]
            parts.append(tabulate(lines, header, "github", disable_numparse=True))
            parts += ["\n".join(map(_plain, table.notes))] if table.notes else []
        parts += map(_plain, section.words)
        parts += [f"![{_plain(picture.text)}]({picture.file})" for picture in section.pictures]
    parts += ["## How to read this", *(f"**{name}**: {_plain(text)}" for name, text in report.legend.items())]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """On one line, and without what begins a tag of HTML."""
    return " ".join(text.split()).replace("<", "&lt;")


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def as_latex(report: Report) -> str:
    """The tables, as a fragment for a document that uses the packages booktabs and graphicx."""
    parts = [r"% \usepackage{booktabs,graphicx}"]
    for section in report.sections:
        for number, table in enumerate(section.tables):
            others = len(table.header) - 1
            columns = "l" + (r"p{5cm}" if table.prose else "r") * others
            lines = [" & ".join(map(escape_latex, line)) + r" \\" for line in table.lines]
            more = [] if number else section.words
            parts.append(
                "\n".join(
                    [
                        r"\begin{table}",
                        r"\centering",
                        rf"\caption{{{escape_latex(section.title)}}}",
                        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
                        rf"\begin{{tabular}}{{{columns}}}",
                        r"\toprule",
                        " & ".join(map(escape_latex, table.header)) + r" \\",
                        r"\midrule",
                        *lines,
                        r"\bottomrule",
                        r"\end{tabular}}",
                        *(rf"\par\smallskip\footnotesize {escape_latex(text)}" for text in (*table.notes, *more)),
                        r"\end{table}",
                    ]
                )
            )
    return "\n\n".join(parts) + "\n"


_WIDE = 1000  # pixels, from which on a figure has a line of its own
_LATEX = {character: f"\\{character}" for character in "&%$#_{}"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"<": "$<$", ">": "$>$", "|": "$|$", '"': "''", "`": "'"}
_LATEX |= {"±": r"$\pm$", "\n": " "}
_LATEX["["] = "{[}"  # after the end of a line of a table it would be an option
_NEGATIVE = re.compile(r"(?<![\w.])-(?=\d)")


def escape_latex(text: str) -> str:
    """A text as LaTeX shows it, numbers below zero with a minus sign."""
    # pdfTeX knows the letters of Latin alphabets; anything else would stop it.
    shown = "".join(_LATEX.get(letter, letter if ord(letter) < 0x180 else "?") for letter in text)
    return _NEGATIVE.sub("$-$", shown)


def as_html(report: Report, folder: Path) -> str:
    """The whole report as one file that needs no other: its figures, read from `folder`, are in it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tfprune.experiments.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"code": _code, "embedded": lambda file: _embedded(folder / file)}
    environment.tests["wide"] = lambda file: _width(folder / file) > _WIDE
    return environment.get_template("report.html.jinja").render(report=report)


def _code(text: str) -> Markup:
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _width(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[16:20], "big")  # of a PNG file


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
