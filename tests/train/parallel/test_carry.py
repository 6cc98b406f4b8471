"""Functions that no other process could import arrive with what they read."""

from __future__ import annotations

import math
import subprocess
import sys
import types

import pytest

from labkit.train.parallel.carry import pack, unpack

NOTEBOOK = """
import math as m
import torch
from labkit.train.parallel.carry import pack

SCALE = torch.tensor(2.0)
item = open("/dev/null")  # cannot travel, and need not: only an attribute of this name is read

def helper(x, depth=0):
    return x if depth > 2 else helper(x + 1, depth + 1)

def outer(factor):
    def inner(x, *, add=1):
        return [SCALE * factor * helper(x) + add + m.floor(0.5) for _ in range(1)][0]
    return inner

def last(function):
    return lambda *args, **given: function(*args, **given).item()

print(pack(last(outer(3))).hex())
"""


def test_a_function_of_a_notebook_arrives_with_its_globals_helpers_and_closure():
    packed = subprocess.run([sys.executable, "-c", NOTEBOOK], check=True, capture_output=True, text=True).stdout
    function = unpack(bytes.fromhex(packed.strip()))
    assert function(1) == 2 * 3 * 4 + 1
    assert function(1, add=0) == 24


def test_what_can_be_imported_goes_by_name():
    assert unpack(pack(math.floor)) is math.floor
    assert unpack(pack(pytest.approx)) is pytest.approx
    assert isinstance(unpack(pack(types)), types.ModuleType)


def test_functions_that_call_each_other_in_a_circle():
    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n != 0 and even(n - 1)

    assert unpack(pack(even))(10) is True
    assert unpack(pack(even))(7) is False
