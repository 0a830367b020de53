"""The code of the guides, run from the first block to the last."""

import re
import shlex
from pathlib import Path

import keras
import pytest

from tfprune.experiments import run
from tfprune.graph.rules import dispatch

DOCS = Path(__file__).parents[1] / "docs"
GUIDE = DOCS / "guide.md"
VERDICT = DOCS / "verdict.md"
COMMAND = ["python", "-m", "tfprune.experiments.run"]


def run_blocks(page):
    """Runs the Python blocks of a page, one after the other; errors tell the lines of the page."""
    text, namespace = page.read_text(encoding="utf-8"), {}
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 10
    for block in blocks:
        line = text[: text.index(block)].count("\n")
        exec(compile("\n" * line + block, page.name, "exec"), namespace)


@pytest.mark.slow
def test_every_block_of_the_guide_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    monkeypatch.setattr(dispatch, "_BY_CLASS", {})
    keras.utils.set_random_seed(0)
    run_blocks(GUIDE)
    made = ["everywhere", "exported", "halfway.keras", "pattern.json", "plan.json", "sensitivity", "theirs.h5"]
    assert sorted(path.name for path in tmp_path.iterdir()) == made
    accuracy = float(capsys.readouterr().out.split()[0])
    assert accuracy > 0.7


@pytest.mark.slow
def test_every_block_for_users_of_tfmot_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    page = DOCS / "from_tfmot.md"
    run_blocks(page)
    assert {"base.keras", "pruned.keras", "1.keras", "logs"} <= {path.name for path in tmp_path.iterdir()}
    printed = capsys.readouterr().out.splitlines()
    told = "".join(re.findall(r"^```text\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
    # Other processors round otherwise; then accuracies and sizes of files are others.
    changing = re.compile(r"0\.\d+|\d{4,}|(base|pruned) \d+")
    assert len(printed) == len(told.splitlines())
    for line, expected in zip(printed, told.splitlines(), strict=True):
        assert line == expected or (changing.fullmatch(line) and changing.fullmatch(expected))
    before, after = (float(line) for line in printed[:2])
    assert before > 0.7
    assert after > before - 0.1
    sizes = {
        match[1]: int(match[2]) for match in re.finditer(r"^(base|pruned) (\d+)$", "\n".join(printed), re.MULTILINE)
    }
    assert sizes["pruned"] < 0.6 * sizes["base"]


@pytest.mark.slow
def test_every_block_of_the_page_on_studies_runs_and_every_verdict_names_its_metric(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_layers.py").touch()
    (tmp_path / "my_data.py").write_text(
        "import numpy as np\n"
        "def load():\n"
        "    with np.load('waves.npz') as file:\n"
        "        return (file['x_train'], file['y_train']), (file['x_test'], file['y_test'])\n"
    )
    text = VERDICT.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(python|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks].count("bash") == 2
    namespace, verdicts = {}, []
    for language, block in blocks:
        if language == "python":
            exec(compile("\n" * text[: text.index(block)].count("\n") + block, VERDICT.name, "exec"), namespace)
            verdicts += [namespace["result"].verdict] if "study(" in block else []
        else:
            command = shlex.split(block)
            assert command[:3] == COMMAND
            assert run.main(command[3:]) == 0
    for verdict, metric in zip(verdicts, ("mae", "accuracy", "mask_iou"), strict=True):
        assert f"it in {metric}" in verdict
    report = (tmp_path / "runs" / "report.md").read_text(encoding="utf-8")
    assert all(verdict in report for verdict in verdicts)
    assert "npz, signal.keras, network_slimming" in report
    assert "favours the inherited weights" in report
    assert "my_data:load" in capsys.readouterr().out


def headings(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [line[3:] for line in lines if line.startswith("## ")]
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize(
    "name",
    [
        *("docs/index.md", "docs/guide.md", "docs/from_tfmot.md", "docs/verdict.md"),
        *("docs/distribution.md", "docs/tutorial.md"),
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
