"""What the benchmark leaves in its workdir: the rows of every group, measured now or before, and the report of them."""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tfprune.errors import UsageError
from tfprune.experiments.bench.rows import HEADER, Row
from tfprune.experiments.reporting.document import Picture, Report, Section, Table, as_markdown, as_text
from tfprune.experiments.store.provenance import environment
from tfprune.support.files import replacing
from tfprune.support.machine import processor

_ROWS, _MACHINES = "bench.json", "machine.json"
_FIGURES = {
    "latency": ("figures/speedup.png", "measured speed-up against the MACs that are left"),
    "widths": ("figures/widths.png", "time of a layer against its width, by engine"),
}
_GROUPS = {
    "training": "Training, images a second",
    "methods": "What a method adds to the plain training loop",
    "fit": "What sparse training adds to a user's own fit",
    "surgery": "Surgery",
    "latency": "After pruning",
    "widths": "Widths, by engine",
    "study": "Studies",
}
_LEGEND = {
    "as": "`speed`: so many times as fast as what it stands beside; `cost`: so many times its time, memory or size.",
    "ratio": "The median over rounds in which what is compared took turns; IQR is the distance of its quartiles.",
    "-": "No ratio: the baseline, timed again after the last round, had drifted by more than 5 %, in every attempt.",
    "bare steps": "Of our loop, on one batch that is there already; PyTorch's steps, too, take one batch.",
    "Keras fit": "`compile` and `fit` of the same plain network, from arrays in memory, or with augmentation from a "
    "tf.data pipeline. Of small networks some of its epochs, longer ones too, run at half the speed of others, which "
    "shows in the IQR.",
    "tf_keras fit": "The same network under Keras 2, on which TFMOT's wrapper stands, in a process of its own.",
    "gradual": "A cut every 100 steps, by a PolynomialDecay that ends after the last round.",
}


def store(workdir: Path, group: str, rows: Sequence[Row]) -> str:
    """Puts the rows of a group in the place of those that were there, and writes the report of all.

    Returns:
        The tables, for a terminal.

    Raises:
        UsageError: If what is there is no result of the benchmark.
    """
    before, machines = check(workdir)
    machines |= {group: machine()}
    every = sorted(
        [*(row for row in before if row.group != group), *rows], key=lambda row: list(_GROUPS).index(row.group)
    )
    stored = [dataclasses.asdict(row) for row in every]
    for name, content in ((_ROWS, stored), (_MACHINES, machines)):
        with replacing(workdir / name) as scratch:
            scratch.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    with replacing(workdir / "bench.csv") as scratch, open(scratch, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)])
        writer.writeheader()
        writer.writerows(stored)
    report = _report(workdir, every, machines)
    with replacing(workdir / "bench.md") as scratch:
        scratch.write_text(as_markdown(report), encoding="utf-8")
    return as_text(report)


def check(workdir: Path) -> tuple[list[Row], dict[str, dict]]:
    """What is there already: the rows, and the machine of every group.

    Raises:
        UsageError: If what is there is no result of the benchmark.
    """
    found, machines = _read(workdir / _ROWS, list), _read(workdir / _MACHINES, dict)
    try:
        rows = [Row.stored(fields) for fields in found]
    except (AttributeError, TypeError) as error:
        raise _foreign(workdir / _ROWS) from error
    for name, known in ((_ROWS, _GROUPS), (_MACHINES, machines)):
        if not {row.group for row in rows} <= known.keys():
            raise _foreign(workdir / name)
    return rows, machines


def _read(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return kind()
    except ValueError as error:
        raise UsageError(f"{str(path)!r} is no JSON ({error}). Move it away, or name another --workdir.") from error
    if not isinstance(content, kind):
        raise _foreign(path)
    return content


def _foreign(path: Path) -> UsageError:
    return UsageError(f"{str(path)!r} is no result of the benchmark. Move it away, or name another --workdir.")


def _report(workdir: Path, rows: Sequence[Row], machines: dict[str, dict]) -> Report:
    sections = []
    for group, title in _GROUPS.items():
        own = [row for row in rows if row.group == group]
        if not own:
            continue
        notes = list(dict.fromkeys(f"{row.name}: {row.note}" for row in own if row.note))
        file, text = _FIGURES.get(group, ("", ""))
        pictures = [Picture(text, file)] if file and (workdir / file).is_file() else []
        table = Table(HEADER, [row.cells() for row in own])
        sections.append(Section(title, [table], [*notes, f"Measured on {_in_words(machines[group])}."], pictures))
    missed = [row.name for row in rows if row.met is False]
    lead = [
        f"{sum(row.met is True for row in rows)} targets met, {len(missed)} missed, "
        f"{sum(row.target is not None and row.ratio is None for row in rows)} withheld, "
        f"{sum(row.target is None for row in rows)} ratios without a target.",
        "Made by `python -m tfprune.experiments.bench`.",
    ]
    return Report("Benchmark", lead, sections, _LEGEND)


def machine() -> dict[str, Any]:
    """What the figures depend on; JSON types."""
    found = environment()
    with suppress(importlib.metadata.PackageNotFoundError):
        found["packages"]["torch"] = importlib.metadata.version("torch")
    return {
        **found,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": {name: os.environ.get(name) for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")},
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "measured": datetime.now(UTC).isoformat(timespec="minutes"),
    }


def _in_words(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    set_threads = [f"{name}={value}" for name, value in machine["threads"].items() if value]
    threads = ", ".join(set_threads) or "TensorFlow's default number of threads"
    return (
        f"{machine['processor'] or machine['devices'][0]}, {machine['cores']} cores, {machine['memory_gb']} GB, "
        f"{threads}; Python {machine['python']}, {versions}; commit {machine['commit'] or 'unknown'}; "
        f"{machine['measured']}"
    )
