"""scripts/bench-peers itself, with little of everything: what it writes is well formed, and what is missing is told."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest
import xml.etree.ElementTree as xml
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[3]
PROGRAM = ROOT / "scripts" / "bench-peers"
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
BLKMIRROR = pathlib.Path(os.environ.get("BLKMIRROR_CLI") or TARGET / "release" / "blkmirror")
SVG = "{http://www.w3.org/2000/svg}"
LETTER = 7.6


def bench(output: str, *more: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "BLKMIRROR_REQUIRE_TOOLS": "", **({"PATH": path} if path else {})}
    command: Sequence[str | pathlib.Path] = [
        shutil.which("python3") or "python3", PROGRAM, "--blkmirror", BLKMIRROR, "--disk", output, "--output", output, *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


class Quick(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        if not BLKMIRROR.exists():
            raise AssertionError(f"{BLKMIRROR} is not there: cargo build --release -p blkmirror-cli")

    def test_everything_is_measured_and_told(self) -> None:
        with tempfile.TemporaryDirectory() as output:
            done = bench(output, "--quick")
            self.assertEqual(done.returncode, 0, done.stderr)
            results = json.loads(pathlib.Path(output, "results.json").read_text(encoding="utf-8"))
            names = [case["name"] for case in results["results"]]
            listed = bench(output, "--list").stdout.splitlines()
            self.assertEqual(names, [line.split(":")[0] for line in listed if not line.startswith(" ")])
            for case in results["results"]:
                for row in case["rows"]:
                    told = row["samples"] or row["missing"]
                    self.assertTrue(told, f"{case['name']}: {row['name']}: neither measured nor missing")
            self.look_at_table(pathlib.Path(output, "table.md").read_text(encoding="utf-8"), done.stdout)
            self.look_at_picture(pathlib.Path(output, "peers.svg"))
            self.assertEqual(sorted(os.listdir(output)), ["peers.svg", "results.json", "table.md"], "files are left behind")

    def look_at_table(self, text: str, said: str) -> None:
        for line in text.splitlines():
            if line.startswith("|"):
                self.assertTrue(line.endswith("|"), line)
        blocks = [block for block in text.split("\n\n") if block.startswith("|")]
        self.assertGreaterEqual(len(blocks), 5)
        for block in blocks:
            self.assertEqual(len({line.count("|") for line in block.splitlines()}), 1, block)
        self.assertIn(said.strip(), text)

    def look_at_picture(self, path: pathlib.Path) -> None:
        root = xml.parse(path).getroot()
        width, height = float(root.attrib["width"]), float(root.attrib["height"])
        bars = [bar for bar in root.iter(f"{SVG}rect") if bar.get("class") in ("ours", "peer")]
        self.assertGreater(len(bars), 20)
        for bar in bars:
            right = float(bar.attrib["x"]) + float(bar.attrib["width"])
            self.assertLess(right, width)
            self.assertGreater(float(bar.attrib["width"]), 0)
        for text in root.iter(f"{SVG}text"):
            words = text.text or ""
            self.assertLess(float(text.attrib["y"]), height)
            at, long = float(text.attrib["x"]), len(words) * LETTER
            left = at - long if text.get("text-anchor") == "end" else at
            self.assertTrue(left >= 0 and left + long <= width, f"it leaves the picture: {words}")

    def test_a_peer_that_is_missing_is_told_of_everywhere(self) -> None:
        with tempfile.TemporaryDirectory() as output, tempfile.TemporaryDirectory() as few:
            for name in ("dd", "sh", "cp", "sync"):
                os.symlink(shutil.which(name) or name, pathlib.Path(few, name))
            done = bench(output, "--quick", "--only", "files-disk", path=few)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("NOT MEASURED: files-disk: nbdcopy, local files: nbdcopy missing", done.stderr)
            table = pathlib.Path(output, "table.md").read_text(encoding="utf-8")
            self.assertIn("| QEMU mirror, native, direct | not measured: qemu-storage-daemon missing |", table)
            self.assertRegex(table, r"against QEMU's best \| [\d.]+ \| – \| – \| ≤ 1 × peer \| not measured \|")
            self.assertIn("not measured: nbdcopy missing", pathlib.Path(output, "peers.svg").read_text(encoding="utf-8"))
            self.assertRegex(table, r"against dd bs=1M, direct \| [\d.]+ \| [\d.]+ \(dd")

    def test_results_of_two_runs_make_one_report(self) -> None:
        with tempfile.TemporaryDirectory() as output, tempfile.TemporaryDirectory() as both:
            files = []
            for case in ("files-disk", "files-tmpfs"):
                self.assertEqual(bench(output, "--quick", "--only", case).returncode, 0)
                files.append(str(pathlib.Path(both, f"{case}.json")))
                shutil.move(pathlib.Path(output, "results.json"), files[-1])
            done = bench(output, "--render", *files)
            self.assertEqual(done.returncode, 0, done.stderr)
            found = re.findall(r"^\| 16 MiB, (\w+): CPU", done.stdout, re.MULTILINE)
            self.assertEqual(found, ["disk", "tmpfs"])

    def test_a_case_that_does_not_exist_is_refused(self) -> None:
        with tempfile.TemporaryDirectory() as output:
            done = bench(output, "--quick", "--only", "nothing")
            self.assertEqual(done.returncode, 1)
            self.assertIn("no such case: nothing; there are copy-loop", done.stderr)


if __name__ == "__main__":
    unittest.main()
