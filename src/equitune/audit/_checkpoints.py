"""Weights from files, and whether they fit a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from equitune._checks import require
from equitune._extras import installed

State = Mapping[str, Tensor]

SUFFIXES = (".safetensors", ".pt", ".pth")

NESTED = ("state_dict", "model_state_dict", "model")
"""Where training scripts put a state dict into a larger checkpoint."""

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What stands in names for a module that was made parallel, averaged, compiled or checkpointed."""

AVERAGED = "n_averaged"
"""The number of updates, beside the ``module`` of ``torch.optim.swa_utils.AveragedModel``."""


def is_checkpoint(weights: str | None) -> TypeGuard[str]:
    """Whether ``--weights`` names a file."""
    return weights is not None and Path(weights).suffix in SUFFIXES


def read_checkpoint(path: str, argument: str = "weights") -> State:
    """The state dict in a file.

    Args:
        path: A ``.safetensors``, ``.pt`` or ``.pth`` file: a state dict, or a dict with one under
            one of :data:`NESTED`. Nothing in it is executed.
        argument: What the file is for, for messages.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it has another ending, or does not hold a state dict.
    """
    use = "a .safetensors, .pt or .pth file"
    require(is_checkpoint(path), argument, f"be {use}", repr(path), "one")
    there = Path(path).is_file()
    require(there, argument, "be a file that exists", repr(path), use, FileNotFoundError)
    try:
        state = _read(path)
    except (OSError, ImportError):
        raise
    except Exception as error:
        # KeyError, IndexError, struct.error, ...: it depends on the damage, and on the dtypes.
        kind = "safetensors" if path.endswith(".safetensors") else "weights"
        raise ValueError(f"{path} cannot be read as {kind}: {error}") from error
    if isinstance(state, Mapping):
        nested = [state[key] for key in NESTED if key in state]
        state = next((inner for inner in nested if isinstance(inner, Mapping)), state)
    entries = state.items() if isinstance(state, Mapping) else ()
    if not entries or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in entries):
        raise ValueError(
            f"{path} holds no state dict; save one with torch.save(model.state_dict(), path)"
        )
    found: State = state
    return found


def load_checkpoint(model: nn.Module, path: str, argument: str = "weights") -> None:
    """Loads a file into a model.

    The file may be that of a model in ``DataParallel``, ``DistributedDataParallel``,
    ``AveragedModel`` or ``torch.compile``, in any order and also inside of the model, or that of a
    larger module which holds the model as its only part.

    Args:
        model: Gets the weights.
        path: As for :func:`read_checkpoint`.
        argument: What the file is for, for messages.

    Raises:
        FileNotFoundError: As :func:`read_checkpoint`.
        ValueError: As :func:`read_checkpoint`, and if names or shapes differ; the message lists
            them.
    """
    _load(model, read_checkpoint(path, argument), path)


def build_fitting(build: Callable[..., nn.Module], path: str, classes: int | None) -> nn.Module:
    """Builds a model with as many classes as a file has, and loads the file.

    Args:
        build: Makes the model; takes ``num_classes``.
        path: The file.
        classes: The number of classes; None to read it from the file, where the last tensor of
            the model's state dict is that of the head.

    Raises:
        FileNotFoundError: As :func:`load_checkpoint`.
        ValueError: As :func:`load_checkpoint`.
    """
    state = read_checkpoint(path)
    model = build() if classes is None else build(num_classes=classes)
    if classes is None:
        head, own = list(model.state_dict().items())[-1]
        found = _fitted(state, model).get(head)
        if found is not None and found.shape[:1] != own.shape[:1]:
            model = build(num_classes=found.shape[0])
    _load(model, state, path)
    return model


def _load(model: nn.Module, state: State, path: str) -> None:
    try:
        missing, unexpected = model.load_state_dict(_fitted(state, model), strict=False)
    except RuntimeError as error:
        # Of the shapes; torch lists them.
        raise ValueError(f"{path} does not fit the model. {error}") from error
    if missing or unexpected:
        names = f"Missing: {_listed(missing)}. Unexpected: {_listed(unexpected)}."
        raise ValueError(f"{path} does not fit the model. {names}")


def _fitted(state: State, model: nn.Module) -> State:
    """A file's tensors by the names that the model has for them, as far as they can be matched."""
    own = model.state_dict().keys()
    readings = list(_peeled(state))
    readings += [bare for reading in readings for bare in _without_wrappers(reading, own)]
    # The first of those that fit, or that differ least, for the message.
    return min(readings, key=lambda reading: len(reading.keys() ^ own))


def _peeled(state: State) -> Iterator[State]:
    """A state dict, and what is inside of the modules that hold the model as their only part."""
    yield state
    names = [name for name in state if name != AVERAGED or state[name].dim()]
    firsts = {name.partition(".")[0] for name in names if "." in name}
    whole = len(names) == len(state) or firsts == {"module"}
    if len(firsts) == 1 and whole and all("." in name for name in names):
        yield from _peeled({name.partition(".")[2]: state[name] for name in names})


def _without_wrappers(state: State, own: Collection[str]) -> Iterator[State]:
    """Names compared without wrappers, which file or model may have, where they stay different."""
    named = {_bare(name): name for name in own}
    bare = {name: _bare(name) for name in state if not _counts_averages(name, state)}
    if len(named) == len(own) and len(set(bare.values())) == len(bare):
        yield {named.get(short, short): state[name] for name, short in bare.items()}


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _counts_averages(name: str, state: State) -> bool:
    """Whether it is the counter of an averaged model, and not a weight."""
    counter = name.rpartition(".")[2] == AVERAGED and not state[name].dim()
    averaged = f"{name.removesuffix(AVERAGED)}module."
    return counter and any(other.startswith(averaged) for other in state)


def _listed(keys: list[str], most: int = 20) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more if keys else "none"


def _read(path: str) -> Any:
    if path.endswith(".safetensors"):
        return installed("safetensors.torch", "safetensors").load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
