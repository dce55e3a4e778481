"""How the shared library gets into the wheel: cargo makes it of the crate, setuptools does the rest.

The crate is the checkout that this folder is part of, or ``rust/`` beside this file, where an sdist has it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

HERE = Path(__file__).resolve().parent
LIBRARY = "libblkmirror.dylib" if sys.platform == "darwin" else "libblkmirror.so"
# Of the packed crate: what its manifest names. The rest is for people who have the checkout.
CRATE = ("Cargo.toml", "Cargo.lock", "LICENSE-MIT", "LICENSE-APACHE", "README.md", "src", "benches", "tests", "include")


def crate() -> Path:
    """Where the Rust sources are."""
    for folder in (HERE / "rust", HERE.parents[1]):
        if (folder / "Cargo.toml").is_file():
            return folder
    raise SystemExit("blkmirror: the Rust sources are missing: build from a checkout, or from an sdist that was made of one")


def cargo(*arguments: str, **environment: str) -> str:
    """Runs cargo in the crate; what it prints."""
    program = os.environ.get("CARGO", "cargo")
    if shutil.which(program) is None:
        raise SystemExit(
            "blkmirror: the shared library is built with Rust, and there is no %r: install Rust 1.95 or later from "
            "https://rustup.rs, or name cargo in CARGO" % program
        )
    # Its messages go to pip, which shows them if it fails.
    done = subprocess.run([program, *arguments], cwd=crate(), env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit("blkmirror: cargo %s failed with code %d" % (arguments[0], done.returncode))
    return done.stdout


def build_library() -> Path:
    """The shared library, fit to leave this machine: stripped of debug information, and without paths of it."""
    home = os.environ.get("CARGO_HOME", str(Path.home() / ".cargo"))
    flags = os.environ.get("CARGO_ENCODED_RUSTFLAGS", "\x1f".join(os.environ.get("RUSTFLAGS", "").split()))
    remap = ["--remap-path-prefix=%s=/cargo" % home, "--remap-path-prefix=%s=/blkmirror" % crate()]
    messages = cargo(
        "rustc", "--locked", "--release", "--package=blkmirror", "--lib", "--crate-type=cdylib",
        "--target-dir=%s" % (target() / "wheel"), "--message-format=json-render-diagnostics", "--", "-Cstrip=debuginfo",
        CARGO_ENCODED_RUSTFLAGS="\x1f".join([flags, *remap] if flags else remap),
    )  # fmt: skip
    for line in messages.splitlines():
        message = json.loads(line)
        if message["reason"] == "compiler-artifact" and message["target"]["name"] == "blkmirror":
            for name in message["filenames"]:
                if Path(name).name == LIBRARY:
                    return Path(name)
    raise SystemExit("blkmirror: cargo made no %s: this platform is not known here" % LIBRARY)


def target() -> Path:
    """Where builds go: the crate's target folder, so that a second one has little to do."""
    return Path(os.environ.get("CARGO_TARGET_DIR", crate() / "target")).resolve()


class BuildLibrary(build_ext):
    """Puts the library where an extension module would be; for an editable install, that is the source folder."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")[:-1], LIBRARY)

    def build_extension(self, ext: Extension) -> None:
        to = Path(self.get_ext_fullpath(ext.name))
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build_library(), to)


class Wheel(bdist_wheel):
    """The library is of a platform, but of no Python in particular."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class Sources(sdist):
    """Adds the crate as cargo packs it: without the workspace around it."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        to = Path(base_dir) / "rust"
        if crate() == HERE / "rust":
            shutil.copytree(crate(), to, ignore=shutil.ignore_patterns("target"))
            return
        packed = target() / "wheel"
        cargo("package", "--locked", "--package=blkmirror", "--no-verify", "--allow-dirty", "--quiet", "--target-dir=%s" % packed)
        with tarfile.open(max((packed / "package").glob("blkmirror-*.crate"), key=os.path.getmtime)) as archive:
            for member in archive.getmembers():
                path = Path(member.name).relative_to(Path(member.name).parts[0])
                if member.isfile() and path.parts[0] in CRATE and ".." not in path.parts:
                    content: Any = archive.extractfile(member)
                    (to / path).parent.mkdir(parents=True, exist_ok=True)
                    (to / path).write_bytes(content.read())


setup(
    ext_modules=[Extension("blkmirror.libblkmirror", sources=[])],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel, "sdist": Sources},
    # Left-overs of a build beside the sources would get into the next one.
    options={"build": {"build_base": str(target() / "wheel" / "python")}},
)
