"""Entry for tools that expect a setup.py; all metadata is in pyproject.toml."""

from setuptools import setup

setup()
