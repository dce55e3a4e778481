"""The command-line tool of this tree."""

from __future__ import annotations

import json
import pathlib
import subprocess

from .measure import Failed, Sample

Record = dict[str, str | float | bool | None]


class Blkmirror:
    def __init__(self, program: pathlib.Path, before: tuple[str, ...] = ()) -> None:
        self.program = program
        # What is put before its command lines.
        self.before = before

    def on(self, processor: int) -> Blkmirror:
        """The same, confined to one processor."""
        return Blkmirror(self.program, ("taskset", "-c", str(processor)))

    def bench(self, *arguments: str) -> list[Record]:
        """The rows of `blkmirror bench`."""
        command = [*self.before, str(self.program), "bench", *arguments, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
        if done.returncode != 0:
            raise Failed(done.stderr.strip()[-300:])
        return [json.loads(line) for line in done.stdout.splitlines()]

    def row(self, *arguments: str) -> Record:
        rows = self.bench(*arguments)
        if len(rows) != 1:
            raise Failed(f"{len(rows)} rows where one was asked for")
        return rows[0]

    def version(self) -> str:
        done = subprocess.run([str(self.program), "--version"], capture_output=True, text=True, check=True)
        return done.stdout.strip()


def figures(row: Record, *names: str) -> Sample:
    """Some of a row's figures; what is not a number is left out."""
    chosen = {}
    for name in names:
        value = row[name]
        if isinstance(value, (int, float)):
            chosen[name] = float(value)
    return chosen
