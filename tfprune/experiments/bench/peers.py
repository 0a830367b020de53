"""Processes of their own, in which peers run whose libraries do not bear ours beside them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress

from tfprune.errors import TfpruneError


class Peer:
    """A process that does what the lines of its input say, and answers each with a line when it is done.

    Args:
        name: What errors call it.
        module: The module of this folder that it runs.
        options: Of its command line.
        environment: Beside that of this process.
    """

    def __init__(self, name: str, module: str, *options: object, environment: Mapping[str, str] | None = None):
        command = [sys.executable, "-m", f"tfprune.experiments.bench.{module}", *map(str, options)]
        self._name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
        )

    def ask(self, line: object) -> None:
        """Has it do something, and waits.

        Raises:
            TfpruneError: If it ends instead.
        """
        answer = ""
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            status = self._process.wait()
            raise TfpruneError(f"{self._name}'s process ended with exit status {status}; see its output above.")

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
