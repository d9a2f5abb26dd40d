"""Setuptools entry: compiles the CPU's library; the metadata and every tool's settings are in pyproject.toml."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

from build_backend import LEVELS, ROOT, compile_levels, native


class BuildNative(Command):
    """Compiles the levels of this kind of machine: into the build, or into the tree where that is what is installed."""

    description = "compile the CPU's library"
    user_options = [("build-lib=", "d", "the folder of the build")]
    editable_mode = False
    build_lib: str

    def initialize_options(self) -> None:
        self.build_lib = None  # type: ignore[assignment]  # distutils fills in what is None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        for complaint in compile_levels(native.FOLDER if self.editable_mode else self.folder):
            self.warn(complaint)

    @property
    def folder(self) -> Path:
        return Path(self.build_lib, native.FOLDER.relative_to(ROOT))

    def built(self) -> list[Path]:
        """The libraries that the build holds, the best level last."""
        paths = [native.library_path(level, self.folder) for level in LEVELS]
        return [path for path in paths if path.is_file()]

    def get_source_files(self) -> list[str]:
        return [str(path.relative_to(ROOT)) for path in sorted(native.SOURCES.rglob("*.*"))]

    def get_outputs(self) -> list[str]:
        return [str(path) for path in [*self.built(), self.folder / native.RECORD]]

    def get_output_mapping(self) -> dict[str, str]:
        if not self.editable_mode:
            return {}
        return {str(self.folder / path.name): str(path) for path in sorted(native.FOLDER.glob("*.*"))}


class Build(build):
    sub_commands = [*build.sub_commands, ("build_native", None)]


class Wheel(bdist_wheel):
    """A wheel of libraries that any Python 3 loads, on any glibc that has the symbols they name."""

    def get_tag(self) -> tuple[str, str, str]:
        command = self.get_finalized_command("build_native")
        assert isinstance(command, BuildNative)
        minors = [int(minor) for path in command.built() for minor in re.findall(rb"GLIBC_2\.(\d+)", path.read_bytes())]
        if not minors:
            return super().get_tag()
        # a tag below 2.17 does not exist for aarch64, and would not help torch's users on x86-64
        return "py3", "none", f"manylinux_2_{max(17, *minors)}_{platform.machine()}"


class Native(Distribution):
    def has_ext_modules(self) -> bool:
        """Whether the wheel will hold machine code."""
        return bool(LEVELS) and native.find_compiler() is not None


setup(distclass=Native, cmdclass={"build": Build, "build_native": BuildNative, "bdist_wheel": Wheel})
