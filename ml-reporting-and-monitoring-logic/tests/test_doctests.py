"""The examples in the docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import advanced_monitoring_scripts

MODULES = [module.name for module in pkgutil.iter_modules(advanced_monitoring_scripts.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name):
    module = importlib.import_module(f"advanced_monitoring_scripts.{name}")
    assert doctest.testmod(module).failed == 0
