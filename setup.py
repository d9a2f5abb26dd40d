"""Setuptools entry; the metadata and every tool's settings are in pyproject.toml."""

from setuptools import setup

setup()
