"""The machine that something runs on."""

from __future__ import annotations

import platform
from pathlib import Path

_VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON"}  # the flag of Linux -> what it is called


def processor() -> str:
    """The model of the processor, with the widest vectors that it has where that is known; "" where neither is."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    name = found.get("model name", "") or platform.processor()
    flags = f"{found.get('flags', '')} {found.get('Features', '')}".split()
    vectors = next((text for flag, text in _VECTORS.items() if flag in flags), "")
    return f"{name} ({vectors})" if name and vectors else name or vectors
