"""Finds the layers inside a function that can break a symmetry."""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from torch import Tensor, nn

__all__ = ["Layers"]

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
DROPOUTS = (nn.modules.dropout._DropoutNd,)
WINDOWS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d,
    nn.AvgPool2d, nn.AvgPool3d,
)  # fmt: skip


@final
class Layers:
    """The layers of a function: of a module, a bound method, or what a closure refers to.

    Args:
        named: The modules by their dotted names.
    """

    def __init__(self, named: dict[str, nn.Module]) -> None:
        self._named = named
        self._lopsided: dict[str, str] = {}

    @classmethod
    def of(cls, fn: Callable[..., Any]) -> Layers:
        """The layers that a function calls, as far as they can be found."""
        named: dict[str, nn.Module] = {}
        for root in _modules_of(fn):
            named |= {name or type(root).__name__: m for name, m in root.named_modules()}
        return cls(named)

    @property
    def are_known(self) -> bool:
        """Whether there is a module at all."""
        return bool(self._named)

    def training_batch_norms(self) -> list[str]:
        """The names of BatchNorm layers that use the statistics of the batch."""
        return [
            name for name, m in self._named.items()
            if isinstance(m, BATCH_NORMS) and (m.training or m.running_mean is None)
        ]  # fmt: skip

    def active_dropouts(self) -> list[str]:
        """The names of dropout layers that are active."""
        return [
            name for name, m in self._named.items()
            if isinstance(m, DROPOUTS) and m.training and m.p > 0
        ]  # fmt: skip

    def training(self) -> bool:
        """Whether any module is in train mode."""
        return any(m.training for m in self._named.values())

    def lopsided(self) -> dict[str, str]:
        """What was watched: layers whose windows do not lie symmetrically on what they read."""
        return dict(self._lopsided)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Notes the sizes that strided and padded layers read."""
        compiled = any(
            hasattr(m, "_orig_mod") or isinstance(m, torch.jit.ScriptModule)
            for m in self._named.values()
        )
        handles = [] if compiled else [
            module.register_forward_pre_hook(functools.partial(self._note, name))
            for name, module in self._named.items() if isinstance(module, WINDOWS)
        ]  # fmt: skip
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not args or not isinstance(args[0], Tensor):
            return
        kernels = module.kernel_size
        rank = len(kernels) if isinstance(kernels, tuple) else int(type(module).__name__[-2])
        for axis, size in enumerate(args[0].shape[-rank:]):
            found = _lopsidedness(module, axis, size)
            if found:
                self._lopsided[name] = found


def _lopsidedness(module: nn.Module, axis: int, size: int) -> str | None:
    """Why the windows of a layer lie differently at the two ends of an axis; None if they don't."""
    kernel, stride, dilation = (
        _along(getattr(module, name, 1), axis) for name in ("kernel_size", "stride", "dilation")
    )
    window = dilation * (kernel - 1) + 1
    kind = f"{type(module).__name__} with kernel size {kernel}, stride {stride}"
    if module.padding == "same":
        uneven = (window - 1) % 2 == 1
        return f"{kind} and padding 'same', which pads one side more" if uneven else None
    padding = 0 if module.padding == "valid" else _along(module.padding, axis)
    rest = (size + 2 * padding - window) % stride
    if rest == 0:
        return None
    return (
        f"{kind} and padding {padding} reads {size} entries and leaves {rest} over at one end; "
        f"{size - rest} or {size - rest + stride} would do"
    )


def _along(value: Any, axis: int) -> int:
    return int(value[axis % len(value)] if isinstance(value, tuple) else value)


def _modules_of(fn: object) -> list[nn.Module]:
    if isinstance(fn, nn.Module):
        return [fn]
    if isinstance(fn, functools.partial):
        parts = [fn.func, *fn.args, *fn.keywords.values()]
        return [module for part in parts for module in _modules_of(part)]
    if inspect.ismethod(fn):
        return _modules_of(fn.__self__)
    if not inspect.isfunction(fn):
        return []
    return [value for value in _variables(fn) if isinstance(value, nn.Module)]


def _variables(fn: types.FunctionType) -> list[object]:
    """What a function refers to by a global or closed-over name, also in a comprehension."""
    values: list[object] = []
    for cell in fn.__closure__ or ():
        # A cell that is still empty has no contents.
        with contextlib.suppress(ValueError):
            values.append(cell.cell_contents)
    codes = [fn.__code__]
    for code in codes:
        values += [fn.__globals__[name] for name in code.co_names if name in fn.__globals__]
        codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return values
