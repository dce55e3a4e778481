"""What docs/WEBASSEMBLY-python.md shows runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backend import CHECKOUT, module_path  # noqa: E402


class Example(unittest.TestCase):
    def test_it_runs_without_the_shared_library(self) -> None:
        page = (CHECKOUT / "docs" / "WEBASSEMBLY-python.md").read_text()
        examples = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
        self.assertEqual(len(examples), 1)
        source = CHECKOUT / "bindings" / "python" / "src"
        environment = {**os.environ, "PYTHONPATH": str(source), "BLKMIRROR_LIBRARY": "/missing/libblkmirror.so"}
        run = [sys.executable, "-c", examples[0], str(module_path())]
        done = subprocess.run(run, env=environment, capture_output=True, text=True)
        self.assertEqual((done.stdout, done.stderr, done.returncode), ("mirrored 1000000 bytes\n", "", 0))

    def test_what_is_missing_is_named(self) -> None:
        source = CHECKOUT / "bindings" / "python" / "src"
        environment = {**os.environ, "PYTHONPATH": str(source), "BLKMIRROR_LIBRARY": "/missing/libblkmirror.so"}
        rows = [
            ("import blkmirror; blkmirror.MemoryDevice(512)", "ImportError: the blkmirror shared library was not found"),
            ("import blkmirror; blkmirror.__version__", "ImportError: the blkmirror shared library was not found"),
            (
                "import sys; sys.modules['wasmtime'] = None; import blkmirror.wasm",
                "ImportError: blkmirror.wasm needs wasmtime 45 or later: pip install 'blkmirror[wasm]'",
            ),
        ]
        for code, words in rows:
            done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
            self.assertEqual((done.returncode, words in done.stderr), (1, True), done.stderr)


if __name__ == "__main__":
    unittest.main()
