"""The package as a whole: errors are Python's own, everything public says what it is, the tutorial does what it tells."""

from __future__ import annotations

import copy
import doctest
import errno
import importlib
import inspect
import io
import os
import pickle
import re
import tempfile
import unittest
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple, Type

from backend import CHECKOUT, WASM, b, needs_files

import blkmirror  # Where it is, `backend` knows.

MIB = 1 << 20


class Errors(unittest.TestCase):
    def test_errors_are_what_python_makes_of_their_errno(self) -> None:
        rows: List[Tuple[int, Type[OSError]]] = [
            (errno.ENOENT, FileNotFoundError), (errno.EACCES, PermissionError), (errno.EPERM, PermissionError),
            (errno.EEXIST, FileExistsError), (errno.EISDIR, IsADirectoryError), (errno.EAGAIN, BlockingIOError),
            (errno.ETIMEDOUT, TimeoutError), (errno.ENOSPC, OSError), (errno.EINVAL, OSError), (errno.EBUSY, OSError),
        ]  # fmt: skip
        for number, kind in rows:
            error = b.MirrorError(number, "why")
            self.assertIsInstance(error, b.MirrorError)
            self.assertIsInstance(error, kind)
            self.assertIs(isinstance(error, PermissionError), kind is PermissionError)
            self.assertEqual((error.errno, error.strerror, error.args), (number, "why", (number, "why")))
            self.assertEqual(str(error), "[Errno %d] why" % number)
            self.assertEqual(type(error).__name__, "MirrorError")
            for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
                self.assertEqual((type(again), again.args), (type(error), error.args))

    @needs_files
    def test_a_missing_file_is_missing_and_a_bad_option_says_what_is_allowed(self) -> None:
        with self.assertRaises(FileNotFoundError) as missing, tempfile.TemporaryDirectory() as folder:
            b.FileDevice(Path(folder) / "none.img")
        self.assertIn("none.img", str(missing.exception))

    def test_a_bad_option_says_what_is_allowed(self) -> None:
        with b.MemoryDevice(MIB) as old, b.MemoryDevice(MIB) as new, b.Filter(old) as disk:
            with self.assertRaisesRegex(OSError, "granularity 3000: must be a power of two from 512 to 67108864") as caught:
                b.Job(disk, new, granularity=3000)
            self.assertEqual(caught.exception.errno, errno.EINVAL)
            with b.Job(disk, new) as job, self.assertRaises(PermissionError):
                job.complete()

    def test_a_job_that_ended_well_or_not_can_be_checked(self) -> None:
        for force in (False, True):
            with b.MemoryDevice(MIB) as old, b.MemoryDevice(MIB) as new, b.Filter(old) as disk, b.Job(disk, new) as job:
                job.start()
                job.run(until="ready", timeout=60)
                job.cancel(force=force)
                info = job.run(timeout=60)
                if force:
                    with self.assertRaises(b.MirrorError) as caught:
                        info.check()
                    self.assertEqual(caught.exception.errno, errno.ECANCELED)
                else:
                    self.assertIs(info.check(), info)


def public() -> Iterator[Tuple[str, Any]]:
    """Each module, and each name in it, and in its classes, that doesn't begin with an underscore."""
    for path in Path(blkmirror.__file__).parent.glob("*.py"):
        name = ("blkmirror." + path.stem).replace(".__init__", "")
        if name in ("blkmirror.wasm", "blkmirror._wasmtime") and not WASM:
            continue  # It needs wasmtime.
        module = importlib.import_module(name)
        yield name, module
        if path.stem.startswith("_"):
            continue
        for thing in (getattr(module, exported) for exported in module.__all__):
            if not (inspect.isclass(thing) or inspect.isfunction(thing)):
                continue
            yield "%s.%s" % (name, thing.__name__), thing
            for member, value in vars(thing).items() if inspect.isclass(thing) else ():
                if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, (property, staticmethod))):
                    yield "%s.%s.%s" % (name, thing.__name__, member), value


class Documentation(unittest.TestCase):
    def test_everything_public_says_what_it_is(self) -> None:
        things = dict(public())
        self.assertGreater(len(things), 120)
        for name in ("blkmirror.job.Job.ready", "blkmirror.filter.Outcome", "blkmirror.filter.Filter.readinto"):
            self.assertIn(name, things)
        undocumented = [name for name, thing in things.items() if not (thing.__doc__ or "").strip()]
        self.assertEqual(undocumented, [])
        # What dataclasses and enumerations make up by themselves is no documentation.
        made_up = [name for name, thing in things.items() if re.match(r"\w+\(", thing.__doc__ or "")]
        self.assertEqual(made_up, [])

    def test_everything_public_has_types(self) -> None:
        untyped = [
            name for name, thing in public()
            if inspect.isfunction(thing) and "return" not in thing.__annotations__
        ]  # fmt: skip
        self.assertEqual(untyped, [])
        self.assertTrue((Path(blkmirror.__file__).parent / "py.typed").exists())

    def test_each_name_is_exported_once(self) -> None:
        self.assertEqual(len(blkmirror.__all__), len(set(blkmirror.__all__)))
        for name in blkmirror.__all__:
            self.assertTrue(hasattr(blkmirror, name), name)


@contextmanager
def empty_folder() -> Iterator[None]:
    """Within this the process is in a folder of its own."""
    home = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(home)


class Readme(unittest.TestCase):
    @unittest.skipIf(WASM, "it is about files, which the module has none of")
    def test_its_first_program_does_what_it_says(self) -> None:
        readme = CHECKOUT / "bindings" / "python" / "README.md"
        program = re.findall(r"^```python\n(.*?)^```$", readme.read_text(), re.M | re.S)[0]
        with empty_folder(), redirect_stderr(io.StringIO()) as shown:
            Path("old.img").write_bytes(os.urandom(MIB))
            exec(compile(program, "README.md", "exec"), {})
            old, new = Path("old.img").read_bytes(), Path("new.img").read_bytes()
        self.assertEqual(new[4096 : 4096 + 28], b"written while it is mirrored")
        self.assertTrue(old == new)
        self.assertIn("100%", shown.getvalue())


class Tutorial(unittest.TestCase):
    """docs/PYTHON.md, from its beginning to its end, in an empty folder: each piece prints what is shown below it."""

    @unittest.skipIf(WASM, "it is about files, which the module has none of")
    @unittest.skipIf(os.environ.get("PYTHONMALLOC") == "malloc", "NOT TESTED under memcheck: it was not seen to end there in 45 s")
    def test_what_it_tells_is_so(self) -> None:
        text = (CHECKOUT / "docs" / "PYTHON.md").read_text()
        self.assertEqual(len(re.findall(r"^```", text, re.M)) % 2, 0)
        blocks: List[Tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
        blocks = [block for block in blocks if block[0] != "sh"]
        self.assertEqual([language for language, _ in blocks], ["python", "text"] * (len(blocks) // 2))
        self.assertGreater(len(blocks), 20)
        names: Dict[str, Any] = {"__name__": "tutorial"}
        with empty_folder():
            for (_, code), (_, shown) in zip(blocks[::2], blocks[1::2]):
                with self.subTest(code=code), redirect_stdout(io.StringIO()) as printed:
                    exec(compile(code, "docs/PYTHON.md", "exec"), names)
                    if not doctest.OutputChecker().check_output(shown, printed.getvalue(), doctest.ELLIPSIS):
                        self.fail("it prints:\n" + printed.getvalue())


if __name__ == "__main__":
    unittest.main()
