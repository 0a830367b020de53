"""Width tables of engines that do not exist, for tests that must not depend on what was measured."""

import json
import math

from tfprune.engines.width_tables.widths import FILE_FORMAT, KINDS
from tfprune.support.machine import processor

WIDTHS = [
    32,
    *(block + rest for block in (32, 96) for rest in (1, 2, 4, 8, 12, 14, 15, 16, 17, 18, 20, 24, 28, 30, 31, 32)),
]


def blocks_of(size, call=0.0):
    """Width -> time in an engine that computes whole blocks of channels."""
    return {width: call + math.ceil(width / size) * size for width in WIDTHS}


def leaves_the_fast_way(multiple, times):
    """The same of one that has a slower way, for widths that are no such multiple."""
    return {width: width * (1 if width % multiple == 0 else times) for width in WIDTHS}


def content(engines, on=None):
    """What a file holds; `engines`: engine -> kind -> (multiple, width -> time)."""

    def kind(multiple, seconds):
        return {"multiple": multiple, "noise": 0.0, "seconds": seconds}

    return {
        "format": FILE_FORMAT,
        "processor": processor() if on is None else on,
        "packages": {},
        "engines": {
            engine: {name: kind(*own.get(name, (1, blocks_of(1)))) for name in KINDS} for engine, own in engines.items()
        },
    }


def write(path, on=None, **engines):
    """Writes the file of a table; `engines`: engine -> kind -> multiple."""
    own = {
        engine: {kind: (multiple, blocks_of(multiple)) for kind, multiple in kinds.items()}
        for engine, kinds in engines.items()
    }
    path.write_text(json.dumps(content(own, on)))
    return path
