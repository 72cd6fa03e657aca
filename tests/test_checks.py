"""What all checks of arguments have in common."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from equitune._checks import (
    described,
    naming,
    readable,
    require_int,
    require_number,
    require_numbers,
    require_strings,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint16, torch.bool])
def test_values_are_read_where_that_is_possible(dtype):
    for shape in ((3,), (2, 3), ()):
        assert readable(torch.zeros(shape, dtype=dtype))
    assert not readable(torch.zeros(0, 3, dtype=dtype))
    assert not readable(torch.zeros(2, dtype=dtype, device="meta"))
    with FakeTensorMode():
        assert not readable(torch.zeros(2, dtype=dtype))
    seen = []
    torch.func.vmap(lambda x: seen.append(readable(x)) or x)(torch.zeros(2, 3, dtype=dtype))
    assert seen == [False]


def test_values_are_read_under_other_transforms():
    seen = []
    torch.func.grad(lambda x: seen.append(readable(x)) or x.sum())(torch.zeros(3))
    assert seen == [True]


def test_compiled_code_does_not_look_at_values():
    seen = []

    def function(x):
        seen.append(readable(x))
        return x + 1

    torch.compile(function, backend="eager", fullgraph=True)(torch.zeros(3))
    assert seen == [False]


@pytest.mark.parametrize(("value", "words"), [
    (None, "None"), ("a", "'a'"), (3, "3"), (torch.zeros(2), "a tensor of dtype torch.float32"),
    (int, "the class int"), ([], "a list"), (np.zeros(2), "a ndarray"), ({}, "a dict"),
    ("x" * 200, "'" + "x" * 59),
])  # fmt: skip
def test_what_was_given_is_described_in_few_words(value, words):
    assert described(value).startswith(words)
    assert len(described(value)) < 80


def test_numbers_in_the_dtype_in_which_they_were_given():
    for values, dtype in (
        ([[1, 2], [3, 4]], torch.int64),
        ([[1, 2.5], [3, 4]], torch.float64),
        ([[1j]], torch.complex128),
        ([np.float32([1, 2])], torch.float32),
        ([torch.ones(2).half()], torch.float16),
        (np.ones((1, 2)), torch.float64),
    ):
        found = require_numbers("values", values, "numbers")
        assert found.dtype == dtype
        assert found.dim() == 2
    for values in (None, 3, "ab", [[1], [2, 3]], [[None]], [["a"]], [[10**30]], {}):
        with pytest.raises((TypeError, ValueError), match=r"^`values` must be a table of numbers"):
            require_numbers("values", values, "numbers")


def test_whole_numbers_of_other_libraries_count_and_flags_do_not():
    for value in (3, np.int64(3), torch.tensor(3)):
        assert require_int("n", value, "a number") == 3
    for value in (True, 3.0, "3", None, torch.tensor(3.0), torch.tensor([1, 2])):
        with pytest.raises(TypeError, match=r"^`n` must be an int"):
            require_int("n", value, "a number")


def test_numbers_have_bounds():
    assert require_number("p", np.float32(0.5), 0, 1) == 0.5
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"^`p` must be in \[0, 1\], got"):
            require_number("p", value, 0, 1)
    for value in (None, "0.5", True, torch.tensor(0.5)):
        with pytest.raises(TypeError, match=r"^`p` must be in \[0, 1\], got"):
            require_number("p", value, 0, 1)


def test_a_string_is_no_list_of_strings():
    assert require_strings("names", ["ab", "c"], "names") == ("ab", "c")
    for value in ("ab", 3, [3], None, torch.tensor(1)):
        with pytest.raises(TypeError, match=r"^`names(\[0\])?` must be a"):
            require_strings("names", value, "names")


def test_errors_of_others_get_the_name_of_the_argument():
    with pytest.raises(ValueError, match=r"^`y`: x is wrong$"), naming("y"):
        raise ValueError("x is wrong")
    with pytest.raises(TypeError, match=r"^y is wrong$"), naming("y"):
        raise TypeError("y is wrong")
    # Part of a word is no name; what is neither passes as it is.
    with pytest.raises(ValueError, match=r"^`y`: any$"), naming("y"):
        raise ValueError("any")
    with pytest.raises(KeyError), naming("y"):
        raise KeyError("x")
