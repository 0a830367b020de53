import os

import pytest

from tfprune.errors import UsageError
from tfprune.support.files import check_writable, file_name, replacing


def test_processes_of_one_number_write_beside_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in pods
    path = tmp_path / "results.csv"
    with replacing(path) as one, replacing(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() in ("one", "other")
    assert list(tmp_path.iterdir()) == [path]


def test_a_long_name_is_cut_and_stays_its_own():
    names = {file_name(f"skip={'+'.join(f'conv_{i}' for i in range(80))} {end}") for end in ("a", "b")}
    assert len(names) == 2
    assert max(map(len, names)) < 200
    assert file_name("ratio=0.5, skip=fc_*") == "ratio-0.5-skip-fc_"


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        check_writable(tmp_path / "file" / "runs")
    check_writable(tmp_path / "new" / "runs")
    assert list((tmp_path / "new" / "runs").iterdir()) == []
