"""The API reference has every public name; that it can be built without a broken link is CI's to show."""

import re
from pathlib import Path

import tfprune

PAGES = Path(__file__).parents[1] / "docs" / "reference"


def test_every_public_name_is_in_the_reference():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES.glob("*.rst"))
    told = re.findall(r"^\.\. auto(?:class|function|exception|module):: tfprune\.(\w+)$", text, re.MULTILINE)
    assert sorted(told) == sorted({*tfprune.__all__, "rules"} - {"__version__"})
