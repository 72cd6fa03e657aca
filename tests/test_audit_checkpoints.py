"""Files of weights: those of wrapped models load in any nesting, broken ones have one error."""

import itertools
import re
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel

from equitune.audit import load_classifier
from equitune.audit._checkpoints import load_checkpoint, read_checkpoint

WRAPPERS = {
    "parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "compiled": torch.compile,
}
NESTINGS = [
    names for count in (1, 2, 3) for names in itertools.product(WRAPPERS, repeat=count)
    # A model cannot be compiled twice.
    if names.count("compiled") < 2
]  # fmt: skip


def network():
    return nn.Sequential(
        OrderedDict(first=nn.Linear(4, 5), norm=nn.BatchNorm1d(5), last=nn.Linear(5, 3))
    )


def wrapped(model, names):
    for name in names:
        model = WRAPPERS[name](model)
    return model


def assert_same(model, trained):
    state = model.state_dict()
    assert state.keys() == trained.state_dict().keys()
    for name, value in trained.state_dict().items():
        assert torch.equal(state[name], value), name


@pytest.mark.parametrize("names", NESTINGS, ids="-".join)
def test_wrapped_models(tmp_path, names):
    trained, model = network(), network()
    trained.norm.running_mean.fill_(3.0)
    torch.save(wrapped(trained, names).state_dict(), tmp_path / "w.pt")
    load_checkpoint(model, str(tmp_path / "w.pt"))
    assert_same(model, trained)


@pytest.mark.parametrize("names", [names for names in NESTINGS if len(names) < 3], ids="-".join)
def test_wrapped_parts_of_models(tmp_path, names):
    trained, model, plain = network(), network(), network()
    plain.load_state_dict(trained.state_dict())
    for place in ("last", "norm"):
        setattr(trained, place, wrapped(getattr(trained, place), names))
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    load_checkpoint(model, str(tmp_path / "w.pt"))
    assert_same(model, plain)


@pytest.mark.parametrize("names", [names for names in NESTINGS if "averaged" not in names],
                         ids="-".join)  # fmt: skip
def test_a_model_that_is_wrapped_itself(tmp_path, names):
    trained, model = network(), wrapped(network(), names)
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    load_checkpoint(model, str(tmp_path / "w.pt"))
    assert_same(model, wrapped(trained, names))


@pytest.mark.parametrize("prefix", ["model.", "net.", "model._orig_mod.", "_orig_mod.model."])
def test_the_only_part_of_a_larger_module(tmp_path, prefix):
    trained, model = network(), network()
    state = {f"{prefix}{name}": value for name, value in trained.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3, "optimizer_states": [1]}, tmp_path / "w.pt")
    load_checkpoint(model, str(tmp_path / "w.pt"))
    assert_same(model, trained)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_larger_checkpoints(tmp_path, key):
    trained, model = network(), network()
    state = nn.DataParallel(trained).state_dict()
    torch.save({"epoch": 3, key: state}, tmp_path / "w.pt")
    load_checkpoint(model, str(tmp_path / "w.pt"))
    assert_same(model, trained)


def test_modules_whose_own_names_are_those_of_wrappers(tmp_path):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)
            self.weight = nn.Parameter(torch.rand(2))
            self.n_averaged = nn.Parameter(torch.tensor(1.5))

    for names in [(), *NESTINGS]:
        trained, model = Own(), Own()
        torch.save(wrapped(trained, names).state_dict(), tmp_path / "w.pt")
        load_checkpoint(model, str(tmp_path / "w.pt"))
        assert_same(model, trained)


class Twice(nn.Module):
    """Without its wrappers' names, both parts have the same."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(2, 2)
        self.weight = nn.Parameter(torch.rand(2))
        self.inner = nn.ModuleDict({"module": nn.Linear(3, 3, bias=False)})
        self.inner.register_parameter("weight", nn.Parameter(torch.rand(1)))


def test_names_that_cannot_be_told_apart_are_not_guessed(tmp_path):
    trained, model = Twice(), Twice()
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    load_checkpoint(model, str(tmp_path / "w.pt"))
    assert_same(model, trained)
    trained.inner = nn.DataParallel(trained.inner)
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match="does not fit the model"):
        load_checkpoint(model, str(tmp_path / "w.pt"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("module.last.bias"), "Missing: last.bias. Unexpected: none."),
        (
            lambda state: state.update({"module.head.bias": torch.ones(1)}),
            "Missing: none. Unexpected: head.bias.",
        ),
        (lambda state: state.update({"n_averaged": torch.ones(2)}), "Unexpected: n_averaged."),
        (lambda state: state.update({"module.last.bias": torch.ones(9)}), "size mismatch"),
    ],
    ids=["missing", "unexpected", "no counter", "shape"],
)
def test_wrapped_models_that_do_not_fit(tmp_path, change, message):
    state = nn.DataParallel(network()).state_dict()
    change(state)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=re.escape(message)):
        load_checkpoint(network(), str(tmp_path / "w.pt"))


def test_the_classes_of_a_wrapped_model_are_read(tmp_path):
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    trained = models.squeezenet1_0(num_classes=7)
    torch.save(nn.DataParallel(torch.compile(trained)).state_dict(), tmp_path / "w.pth")
    found = load_classifier("torchvision:squeezenet1_0", str(tmp_path / "w.pth"))
    assert_same(found.module, trained)


CHECKPOINT = network().state_dict()


def stored(tmp_path_factory, ending, **options):
    path = tmp_path_factory.mktemp("weights") / f"w{ending}"
    if ending == ".safetensors":
        pytest.importorskip("safetensors.torch").save_file(CHECKPOINT, path)
    else:
        torch.save(CHECKPOINT, path, **options)
    return path


@pytest.mark.parametrize(
    ("ending", "options"),
    [(".pt", {}), (".pth", {"_use_new_zipfile_serialization": False}), (".safetensors", {})],
    ids=["zip", "legacy", "safetensors"],
)
def test_broken_files_have_one_error(tmp_path_factory, ending, options):
    """Cut anywhere, or with a few bytes changed, a file is read or refused by one kind of error."""
    path = stored(tmp_path_factory, ending, **options)
    whole = path.read_bytes()
    seen = set()

    @given(st.integers(0, len(whole)), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)),
                                                max_size=5))  # fmt: skip
    def check(length, changes):
        data = bytearray(whole[:length])
        for place, value in changes:
            if place < len(data):
                data[place] = value
        path.write_bytes(data)
        try:
            read_checkpoint(str(path))
        except ValueError as error:
            seen.add(str(path) in str(error))

    check()
    assert seen == {True}


@pytest.mark.parametrize("dtype", ["Q9", "F4"])
def test_dtypes_that_are_not_known(tmp_path, dtype):
    pytest.importorskip("safetensors.torch")
    header = f'{{"w":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,1]}}}}'.encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"0")
    model = nn.Module()
    model.register_parameter("w", nn.Parameter(torch.ones(2)))
    with pytest.raises(ValueError, match=r"w\.safetensors (cannot be read|does not fit)"):
        load_checkpoint(model, str(tmp_path / "w.safetensors"))
