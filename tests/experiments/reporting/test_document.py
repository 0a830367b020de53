import base64
import re
from html.parser import HTMLParser

import pytest

from tfprune.experiments.reporting.document import (
    Picture,
    Report,
    Section,
    Table,
    as_html,
    as_latex,
    as_markdown,
    as_text,
    escape_latex,
)

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
NASTY = 'vgg16_l1 50 % & <b>bold</b> | a#b $x$ {y} \\z ~ ^ "q" ±'


def a_report(*cells):
    table = Table(("regime", "test accuracy %"), [("scratch_e", "93.00 ± 0.10"), *cells], ["[1] 100 % of it."])
    prose = Table(("stage", "why"), [("train-x", NASTY)], prose=True)
    sections = [
        Section("cifar10, vgg16_l1", [table], ["Nothing `scratch_e` shown."], [Picture("accuracy", "figures/a.png")]),
        Section("Failed & gone", [prose]),
    ]
    return Report("Was it?", ["2 settings."], sections, {"`Regimes`": "`scratch_e` is <new>."})


class Page(HTMLParser):
    """What a browser would fetch, the cells of the tables, and whether every tag is closed."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.fetched, self.cells, self.ids, self.links, self.tags = [], [], [], [], [], set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if "href" in attrs else []
        self.fetched += [attrs[name] for name in ("src", "srcset", "data", "poster") if name in attrs]
        self.open += [tag] if tag not in self.VOID else []
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a.png").write_bytes(PIXEL)
    return tmp_path


def test_the_page_needs_no_other_file_and_no_script(folder):
    text = as_html(a_report(), folder)
    page = Page(text)
    assert page.open == []
    assert page.fetched == ["data:image/png;base64," + base64.b64encode(PIXEL).decode()]
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert not re.search(r"https?:|url\(|@import", text)
    assert [link for link in page.links if not (link.startswith("#") and link[1:] in page.ids)] == []
    assert len(page.links) == 3


def test_the_page_shows_every_cell_as_it_is(folder):
    text = as_html(a_report((NASTY, "1.00")), folder)
    cells = ["regime", "test accuracy %", "scratch_e", "93.00 ± 0.10", NASTY, "1.00", "stage", "why", "train-x", NASTY]
    assert Page(text).cells == cells
    assert "<dd><code>scratch_e</code> is &lt;new&gt;.</dd>" in text
    assert "Nothing <code>scratch_e</code> shown." in text


def test_markdown_has_as_many_cells_as_columns_whatever_is_in_them():
    page = as_markdown(a_report((NASTY + "\nnew line", "1.00")))
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len(lines) == 7
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}
    assert "<" not in page
    assert "![accuracy](figures/a.png)" in page
    assert "**`Regimes`**: `scratch_e` is &lt;new>." in page


def test_the_terminal_gets_tables_and_words():
    shown = as_text(a_report())
    assert re.search(r"^scratch_e +93.00 ± 0.10$", shown, re.MULTILINE)
    assert "Nothing `scratch_e` shown." in shown
    assert "figures/" not in shown


def commands(text):
    """A LaTeX text without what is escaped, without commands and without formulas."""
    return re.sub(r"\\[a-zA-Z]+(\{\})?|\\[&%$#_{}]|\$[^$]*\$", "", text)


def test_what_means_something_to_latex_is_escaped():
    assert escape_latex("a_b 50 % & #1 {x}") == r"a\_b 50 \% \& \#1 \{x\}"
    assert escape_latex("93.00 ± 0.10 (-0.5 to +1.0)") == r"93.00 $\pm$ 0.10 ($-$0.5 to +1.0)"
    assert escape_latex("ratio-0.5 1e-05") == "ratio-0.5 1e-05"  # no numbers below zero
    assert escape_latex("\\~^") == r"\textbackslash{}\textasciitilde{}\textasciicircum{}"
    assert not re.search(r"[&%$#_{}~^\\<>|\"]", commands(escape_latex(NASTY)).replace("''", ""))
    assert escape_latex("Häuser → 猫") == "Häuser ? ?"


def test_every_line_of_a_latex_table_has_as_many_cells_as_columns():
    text = as_latex(a_report(("[1] & -2.0", "x")))
    columns = re.findall(r"\\begin\{tabular\}\{(.*)\}$", text, re.MULTILINE)
    assert columns == ["lr", "lp{5cm}"]
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert len(rows) == 5
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {1}
    assert not any(row.startswith("[") for row in rows)  # it would be an option of the line before
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 2
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 2
    unescaped = re.sub(r"\\[{}]", "", text)
    assert unescaped.count("{") == unescaped.count("}")
    assert not re.search(r"(?<!\\)%(?!\n| \\usepackage)", text)  # else the rest of the line is a comment
