"""Finds the layers inside a function that can break a symmetry."""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
DROPOUTS = (nn.modules.dropout._DropoutNd,)
WINDOWS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d,
    nn.AvgPool2d, nn.AvgPool3d,
)  # fmt: skip

GLOBAL_NAMES = ("LOAD_GLOBAL", "LOAD_NAME")
DEEPEST = 3


@final
class Layers:
    """The layers of a function: of a module, a bound method, or what a closure refers to.

    Args:
        named: The modules by their dotted names.

    Attributes:
        lopsided: Of what was watched, the layers whose windows do not lie symmetrically on what
            they read, and how they lie.
    """

    def __init__(self, named: dict[str, nn.Module]) -> None:
        self._named = named
        self.lopsided: dict[str, str] = {}

    @classmethod
    def of(cls, fn: Callable[..., Any]) -> Layers:
        """The layers that a function calls, as far as they can be found."""
        roots = {id(root): (name, root) for name, root in _modules_of("", fn)}.values()
        named: dict[str, nn.Module] = {}
        for name, root in roots:
            # One module's layers have their own names; those of several begin with the variable's.
            prefix = name if len(roots) > 1 else ""
            for inner, module in root.named_modules():
                path = ".".join(filter(None, (prefix, inner)))
                named[path or type(root).__name__] = module
        return cls(named)

    @property
    def are_known(self) -> bool:
        """Whether there is a module at all."""
        return bool(self._named)

    def training_batch_norms(self) -> list[str]:
        """The names of BatchNorm layers that use the statistics of the batch."""
        return [name for name, m in self._named.items() if _takes_batch_statistics(m)]

    def batch_second(self) -> list[str]:
        """The names of layers that read (length, batch, ...), torch's default for sequences."""
        return [name for name, m in self._named.items() if getattr(m, "batch_first", None) is False]

    def active_dropouts(self) -> list[str]:
        """The names of dropout layers that are active."""
        return [n for n, m in self._named.items() if isinstance(m, DROPOUTS) and m.training and m.p]

    def training(self) -> bool:
        """Whether any module is in train mode."""
        return any(m.training for m in self._named.values())

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Notes the sizes that strided and padded layers read."""
        compiled = any(
            hasattr(m, "_orig_mod") or isinstance(m, torch.jit.ScriptModule)
            for m in self._named.values()
        )
        with contextlib.ExitStack() as hooks:
            for name, module in self._named.items():
                if isinstance(module, WINDOWS) and not compiled:
                    note = functools.partial(self._note, name)
                    hooks.enter_context(module.register_forward_pre_hook(note))
            yield

    def _note(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not args or not isinstance(args[0], Tensor):
            return
        for axis, size in enumerate(args[0].shape[2:]):
            found = _lopsidedness(module, axis, size)
            if found:
                self.lopsided[name] = found


@contextlib.contextmanager
def running_batch_norms() -> Iterator[list[str]]:
    """Notes which BatchNorm layers run with the statistics of the batch, wherever they are held."""
    names: list[str] = []

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling():
            return
        # What runs inside compiled code calls no hook.
        compiled = hasattr(module, "_orig_mod")
        parts = module.modules() if compiled else (module,)
        norms = filter(_takes_batch_statistics, parts)
        names.extend(f"a {type(m).__name__} of {m.num_features} channels" for m in norms)

    with nn.modules.module.register_module_forward_pre_hook(note), warnings.catch_warnings():
        # A compiled module may call the hook twice, which does no harm.
        warnings.filterwarnings("ignore", r"Using `torch\.compile\(module\)`", UserWarning)
        yield names


def _takes_batch_statistics(module: nn.Module) -> bool:
    return isinstance(module, BATCH_NORMS) and (module.training or module.running_mean is None)


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
    return f"{kind} and padding {padding} reads {size} entries and leaves {rest} over at one end"


def _along(value: Any, axis: int) -> int:
    return int(value[axis % len(value)] if isinstance(value, tuple) else value)


def _modules_of(name: str, fn: object, depth: int = 0) -> list[tuple[str, nn.Module]]:
    """The modules that an object is, holds or refers to, with the names that they have there."""
    if isinstance(fn, nn.Module):
        return [(name, fn)]
    if depth > DEEPEST:
        return []
    inner: Iterable[tuple[str, object]] = ()
    if isinstance(fn, functools.partial):
        inner = [("", fn.func), *_numbered(fn.args), *fn.keywords.items()]
    elif isinstance(fn, Mapping):
        inner = [(str(key), value) for key, value in fn.items()]
    elif isinstance(fn, list | tuple):
        inner = _numbered(fn)
    elif inspect.isfunction(fn):
        inner = [] if (fn.__module__ or "").startswith("torch.") else _variables(fn)
    elif inspect.ismethod(fn):
        owner = fn.__self__
        holds = getattr(owner, "__dict__", {}).items()
        inner = [("", owner)] if isinstance(owner, nn.Module) else holds
    elif callable(fn) and not isinstance(fn, type):
        inner = getattr(fn, "__dict__", {}).items()
    return [found for part, value in inner for found in _modules_of(part or name, value, depth + 1)]


def _numbered(values: Iterable[object]) -> list[tuple[str, object]]:
    return [(str(i), value) for i, value in enumerate(values)]


def _variables(fn: types.FunctionType) -> list[tuple[str, object]]:
    """What a function refers to by a global or closed-over name, also in a comprehension."""
    values: list[tuple[str, object]] = []
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        # A cell that is still empty has no contents.
        with contextlib.suppress(ValueError):
            values.append((name, cell.cell_contents))
    codes = [fn.__code__]
    for code in codes:
        names = {
            str(step.argval) for step in dis.get_instructions(code) if step.opname in GLOBAL_NAMES
        }
        values += [(name, fn.__globals__[name]) for name in names if name in fn.__globals__]
        codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return values
