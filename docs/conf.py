"""How Sphinx builds the pages: `python -m sphinx -W -n -b html -c docs . build/docs`, from the root of the project.

Its sources begin at the root, so that the links between README, the pages of this folder and the results hold in the
built pages as they do in the plain Markdown.
"""

import dataclasses

from docutils import nodes

import tfprune
from tfprune.support.startup import import_tensorflow

import_tensorflow()  # without its messages

project = "tfprune"
version = release = tfprune.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = ["*.md", "docs/**", "experiments/results/**"]
root_doc = "docs/index"

templates_path = ["site"]
html_static_path = ["site"]
html_css_files = ["wide.css"]
html_additional_pages = {"index": "redirect.html"}  # build/docs/index.html leads to build/docs/docs/index.html
html_theme = "furo"
html_title = f"tfprune {release}"
html_show_copyright = False

myst_heading_anchors = 3  # links to headings by their words, as everywhere in Markdown

smartquotes = False  # or --help becomes a dash and a word
default_role = "code"  # `x` in a docstring, as in Markdown
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Names of other projects are shown without a link, so that no network is needed.
nitpick_ignore_regex = [
    ("py:.*", r"(fractions|hashlib|keras|tensorflow|tf|numpy|np|matplotlib|os|collections|typing|pathlib)\..*")
]
# These have no entry of their own: variables of types, what is inside of a layer without a rule, and constants that
# stand in a graph.
nitpick_ignore = [("py:class", "tfprune.graph.rules.dispatch._RuleT"), ("py:class", "tfprune.plans.base.R")]
nitpick_ignore += [("py:class", f"tfprune.graph.inside.{name}") for name in ("Inside", "Step")]
nitpick_ignore += [("py:class", "tfprune.surgery.after_the_cut.compensation.Held")]
nitpick_ignore += [("py:class", "tfprune.sparse_training.base.SparseMethod")]
nitpick_ignore += [("py:class", "tfprune.experiments.studies.study.Study")]


def without_fields(app, what, name, obj, options, signature, returns):
    """Leaves out the signature of a dataclass: its attributes are listed below, with what they mean."""
    if what == "class" and dataclasses.is_dataclass(obj):
        return "", returns
    return signature, returns


def with_dashes(app, doctree):
    """Sets the dash between a parameter and its meaning, which Sphinx writes as two hyphens."""
    for text in list(doctree.findall(lambda node: isinstance(node, nodes.Text) and node == " -- ")):
        text.parent.replace(text, nodes.Text(" \N{EN DASH} "))


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", without_fields)
    app.connect("doctree-read", with_dashes)
