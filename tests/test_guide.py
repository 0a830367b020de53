"""The guide's code, run from its first block to its last."""

import re
from pathlib import Path

import keras
import pytest

from tfprune.graph.rules import dispatch

GUIDE = Path(__file__).parents[1] / "docs" / "guide.md"


@pytest.mark.slow
def test_every_block_of_the_guide_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    monkeypatch.setattr(dispatch, "_BY_CLASS", {})
    keras.utils.set_random_seed(0)
    text = GUIDE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 10
    namespace = {}
    for block in blocks:
        line = text[: text.index(block)].count("\n")
        exec(compile("\n" * line + block, GUIDE.name, "exec"), namespace)
    made = ["exported", "halfway.keras", "pattern.json", "plan.json", "sensitivity", "theirs.h5"]
    assert sorted(path.name for path in tmp_path.iterdir()) == made
    accuracy = float(capsys.readouterr().out.split()[0])
    assert accuracy > 0.7


def headings(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [line[3:] for line in lines if line.startswith("## ")]
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize(
    "name",
    [
        *("docs/index.md", "docs/guide.md", "docs/distribution.md", "docs/tutorial.md"),
        *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "BUILD_NOTES.md"),
    ],
)
def test_links_lead_somewhere(name):
    page = GUIDE.parents[1] / name
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("https:"):
            path, _, heading = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), target
            assert not heading or heading in headings(file), target
