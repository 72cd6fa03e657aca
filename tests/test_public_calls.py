"""Every public call with one wrong argument names that argument."""

import inspect
import re
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equitune._checks import described
from public_calls import (
    ABSTRACT,
    ALONE,
    NOT_CALLED,
    ROWS,
    accepts,
    annotations,
    call,
    public_names,
)

WRONG = {
    "None": None,
    "int": -3,
    "string": "a word",
    "list": ["a", 1, None],
    "empty list": [],
    "tensor": torch.zeros(2, 3, 5, 1, dtype=torch.complex64),
    "scalar": torch.tensor(0.5),
}


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    dtype = draw(st.sampled_from([torch.float32, torch.int64, torch.bool, torch.complex64]))
    return torch.ones(shape, dtype=dtype)


ANYTHING = st.one_of(
    st.none(),
    st.integers(-5, 5),
    st.text(max_size=3),
    st.lists(st.one_of(st.none(), st.integers(-5, 5), st.text(max_size=2)), max_size=3),
    tensors(),
)


def spoil(row, name, value):
    """Calls with a wrong argument; a message says what is wrong with the answer."""
    given = f"{name} = {described(value)}"
    try:
        with warnings.catch_warnings():
            # Of what is taken, a warning may say that it is not enough.
            warnings.simplefilter("ignore")
            row(**{name: value})
    except (TypeError, ValueError) as error:
        said = str(error)
        if re.search(rf"(?<!\w){name}(?!\w)", said):
            return None
        return f"{given}: {type(error).__name__} does not name it: {said[:300]}"
    except Exception as error:
        if name in row.handed_on and isinstance(value, torch.Tensor):
            return None
        return f"{given}: {type(error).__name__}: {error}"[:400]
    if name in row.free or accepts(annotations(row.function)[name], value):
        return None
    return f"{given} was taken"


@pytest.mark.parametrize("public", ROWS)
def test_a_wrong_argument_is_named(public):
    row = ROWS[public]
    row()
    found = [spoil(row, name, value) for name in row.arguments() for value in WRONG.values()]
    assert not "\n".join(filter(None, found))


# Hypothesis draws from these itself, which no test of its own may do.
DRAWING = "testing.strategies."


@pytest.mark.parametrize("public", [name for name in ROWS if not name.startswith(DRAWING)])
def test_any_wrong_argument_is_named(public):
    row = ROWS[public]

    @given(st.sampled_from(sorted(row.arguments())), ANYTHING)
    def check(name, value):
        assert not spoil(row, name, value)

    check()


def test_every_public_name_has_a_row_or_a_reason():
    public = public_names()
    assert {"groups.cyclic", "vision.BoxAction", "testing.strategies.images"} <= set(public)
    without = {name for name in public if name not in ROWS}
    assert without == set(NOT_CALLED)
    for name, reason in NOT_CALLED.items():
        if reason == ABSTRACT:
            assert inspect.isabstract(public[name])
        if reason == ALONE:
            assert not inspect.signature(public[name]).parameters
    # A row takes all arguments that its function has.
    for name, row in ROWS.items():
        parameters = inspect.signature(row.function).parameters.values()
        named = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        assert named - {"self", *row.free} <= set(row.arguments()), name


def silent(count: "int"):
    """Takes anything."""


def python_says(count: "int"):
    """Falls through."""
    return range(count)[0] and count.real


def names_another(count: "int"):
    raise ValueError(f"counts is {count!r}, size is wrong")


def names_it(count: "int"):
    if not isinstance(count, int):
        raise TypeError(f"`count` must be an int, got {described(count)}")


@pytest.mark.parametrize(("function", "said"), [
    (silent, "was taken"), (python_says, "does not name it"), (names_another, "does not name it"),
    (names_it, None),
])  # fmt: skip
def test_what_the_check_of_a_call_must_find(function, said):
    found = spoil(call(function, count=3), "count", "a word")
    assert found is None if said is None else said in found
    # What the annotation allows may be taken.
    assert spoil(call(silent, count=3), "count", 5) is None


def test_an_error_of_pythons_own_is_found():
    found = spoil(call(lambda x: x.shape, x=torch.zeros(2)), "x", None)
    assert found == "x = None: AttributeError: 'NoneType' object has no attribute 'shape'"
