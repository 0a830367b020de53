"""The guide's code, run from its first block to its last."""

import re
from pathlib import Path

import keras
import pytest

GUIDE = Path(__file__).parents[1] / "docs" / "guide.md"


@pytest.mark.slow
def test_every_block_of_the_guide_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    from tfprune import rules

    monkeypatch.setattr(rules, "_BY_CLASS", {})
    keras.utils.set_random_seed(0)
    text = GUIDE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 10
    namespace = {}
    for block in blocks:
        line = text[: text.index(block)].count("\n")
        exec(compile("\n" * line + block, GUIDE.name, "exec"), namespace)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "plan.json", "sensitivity"]
    accuracy = float(capsys.readouterr().out.split()[0])
    assert accuracy > 0.7


def test_links_of_the_guide_lead_somewhere():
    text = GUIDE.read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line[3:].lower()).replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("## ")
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target[1:] in headings if target.startswith("#") else (GUIDE.parent / target).is_file(), target
