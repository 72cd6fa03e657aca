"""Runs a backbone in two parts, up to one of its submodules and from there on."""

from __future__ import annotations

import difflib
import inspect
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx, nn

__all__ = ["Cut", "find_submodule"]


@final
@dataclass(frozen=True)
class Parts:
    """The functions of a backbone in the state that it was traced in.

    Attributes:
        first: Of the backbone and its arguments, to the activation.
        rest: Of the backbone and the activation, to its output.
        runs: The names of the modules that the first part runs.
    """

    first: Callable[..., Any]
    rest: Callable[..., Any]
    runs: tuple[str, ...]


@final
class Cut:
    """A place behind a submodule, where backbones are cut: ``rest(first(x))`` is the backbone of x.

    Only the modules that contain the submodule are traced, by ``torch.fx``; all others run as
    they are, hooks and control flow included. The traced ones may be put into other modes and get
    other children; their other attributes are read once. Nothing is copied or kept of a backbone
    but which modules it calls.

    Args:
        backbone: A module to cut.
        name: The dotted name of a submodule through whose output everything goes.

    Raises:
        TypeError: If ``name`` is no string.
        ValueError: If there is no such submodule, it does not run exactly once, something passes
            it by, or the modules around it cannot be traced.
    """

    def __init__(self, backbone: nn.Module, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(
                f"at is a {type(name).__name__}; use the dotted name of a submodule of the backbone"
            )
        find_submodule(backbone, name, "at")
        for parameter in inspect.signature(backbone.forward).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise ValueError(
                    f"at is {name!r}, but the backbone's forward takes {parameter}; a backbone "
                    "that is cut needs named arguments"
                )
        self.name = name
        self._steps = name.split(".")[:-1]
        self._parts: dict[tuple[object, ...], Parts] = {}
        self.prepare(backbone)

    def first(self, backbone: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """What the submodule returns for these arguments of the backbone."""
        bound = inspect.signature(backbone.forward).bind(*args, **kwargs)
        defaults = _defaults(backbone)
        for key, value in bound.arguments.items():
            if key in defaults and not _same(value, defaults[key]):
                raise ValueError(
                    f"the call gives the argument {key!r}, but at is {self.name!r}: a backbone "
                    f"that is cut keeps the defaults of its arguments, here {defaults[key]!r}"
                )
        given = [value for key, value in bound.arguments.items() if key not in defaults]
        return self.prepare(backbone).first(backbone, *given)

    def rest(self, backbone: nn.Module, activation: Any) -> Any:
        """What the backbone returns where its submodule has returned this."""
        return self.prepare(backbone).rest(backbone, activation)

    def runs_first(self, backbone: nn.Module, name: str) -> bool:
        """Whether a submodule runs in the first part."""
        runs = self.prepare(backbone).runs
        return any(name == run or name.startswith(f"{run}.") for run in runs)

    def prepare(self, backbone: nn.Module) -> Parts:
        """The two parts, for the modes and the children that the modules around have now."""
        around = [
            backbone.get_submodule(".".join(self._steps[:depth]))
            for depth in range(len(self._steps) + 1)
        ]
        for module in around:
            if module._forward_hooks or module._forward_pre_hooks:
                raise ValueError(
                    f"at is {self.name!r}, but the {type(module).__name__} around it has forward "
                    "hooks, which do not run where it is cut; put them on the wrapper, or on "
                    "other submodules"
                )
        state = (
            *[module.training for module in around],
            *[name for module in around for name in module._modules],
        )
        if state not in self._parts:
            if torch.compiler.is_compiling():
                raise RuntimeError(
                    f"at is {self.name!r}, and the backbone is in a state in which it was not "
                    "traced; call the wrapper's train() or eval() before it is compiled"
                )
            self._parts = {state: self._trace(backbone), **dict([*self._parts.items()][:3])}
        return self._parts[state]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_parts": {}}

    def _trace(self, backbone: nn.Module) -> Parts:
        try:
            graph = _Tracer(self.name).trace(backbone, _defaults(backbone))
        except Exception as error:
            raise ValueError(
                f"at is {self.name!r}, but torch.fx cannot trace the modules around it: {error}; "
                "use the wrapper on the first part as a module of its own, and put the rest behind "
                "it: nn.Sequential(EquiTune(first_part, ...), rest)"
            ) from error
        module = backbone.get_submodule(self.name)
        runs = [
            node
            for node in graph.nodes
            if node.op == "call_module" and backbone.get_submodule(node.target) is module
        ]
        if len(runs) != 1:
            raise ValueError(
                f"at is {self.name!r}, which runs {len(runs)} times in one pass of the backbone; "
                "cut at a submodule that runs once"
            )
        (cut,) = runs
        self._check(graph, cut)
        (output,) = (node for node in graph.nodes if node.op == "output")
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        names = set(inspect.signature(backbone.forward).parameters)
        # Those with defaults are constants by now, under other names.
        required = [node for node in inputs if node.target in names]
        before = _needed(cut, ())
        return Parts(
            _function(backbone, required, before, cut),
            _function(backbone, [cut], _needed(output, (cut,)), output.args[0]),
            tuple(str(node.target) for node in before if node.op == "call_module"),
        )

    def _check(self, graph: fx.Graph, cut: fx.Node) -> None:
        """Refuses what passes the cut by, and side effects that would be left out."""
        (output,) = (node for node in graph.nodes if node.op == "output")
        rest = _needed(output, (cut,))
        if cut not in _needed(output, ()):
            raise ValueError(
                f"at is {self.name!r}, but the backbone's output does not depend on it; cut "
                "elsewhere"
            )
        behind = _followers(graph, cut)
        for node in rest:
            if node.op == "placeholder":
                passing = next(
                    (n, source)
                    for n in rest
                    for source in n.all_input_nodes
                    if n in behind and source not in behind and source is not cut
                )
                raise ValueError(
                    f"at is {self.name!r}, but {str(passing[0])!r} behind it also reads "
                    f"{str(passing[1])!r} from before it, which passes the cut by; cut where "
                    "everything goes through, such as at the module around it"
                )
        known = {*rest, *_needed(cut, ())}
        for node in graph.nodes:
            if "out" in node.kwargs or (node not in known and _works_in_place(node)):
                raise ValueError(
                    f"at is {self.name!r}, but the modules around it do {str(node)!r} and do not "
                    "use its result; what works in place cannot be cut"
                )


class _Proxy(fx.Proxy):
    """Records what works in place as such; torch.fx would do it out of place."""


def _recording(operation: Callable[..., Any]) -> Callable[[fx.Proxy, object], fx.Proxy]:
    def record(self: fx.Proxy, other: object) -> fx.Proxy:
        proxy: fx.Proxy = self.tracer.create_proxy("call_function", operation, (self, other), {})
        return proxy

    return record


IN_PLACE = (
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv,
    operator.imod, operator.ipow, operator.imatmul, operator.iand, operator.ior, operator.ixor,
)  # fmt: skip

for _operation in IN_PLACE:
    setattr(_Proxy, f"__{_operation.__name__}__", _recording(_operation))


class _Tracer(fx.Tracer):
    """Looks into the modules that contain the cut, and no other; refuses what a graph loses."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._modes = _modes()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self._name.startswith(f"{module_qualified_name}.")

    def proxy(self, node: fx.Node) -> _Proxy:
        return _Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes() != self._modes:
            raise fx.proxy.TraceError("forward switches gradients or autocast on or off")
        return super().create_node(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not any(a is held for held in self._held()):
            raise fx.proxy.TraceError("forward makes a tensor, which would be made only once")
        return super().create_arg(a)

    def _held(self) -> Iterable[object]:
        for module in self.root.modules():
            yield from vars(module).values()
            yield from module.parameters(recurse=False)
            yield from module.buffers(recurse=False)


def _modes() -> tuple[bool, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
    )


def _same(value: object, default: object) -> bool:
    if value is default:
        return True
    plain = bool | int | float | str
    return isinstance(value, plain) and isinstance(default, plain) and value == default


def _defaults(backbone: nn.Module) -> dict[str, Any]:
    """The arguments of forward that have defaults."""
    parameters = inspect.signature(backbone.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _needed(node: fx.Node, known: Iterable[fx.Node]) -> list[fx.Node]:
    """What has to be computed for a node, itself included, where some nodes are known."""
    needed: dict[fx.Node, None] = {}
    open_nodes = [node]
    while open_nodes:
        current = open_nodes.pop()
        if current not in needed and current not in known:
            needed[current] = None
            open_nodes += current.all_input_nodes
    return [n for n in node.graph.nodes if n in needed]


def _followers(graph: fx.Graph, cut: fx.Node) -> set[fx.Node]:
    """What depends on a node."""
    followers: set[fx.Node] = set()
    for node in graph.nodes:
        if any(source is cut or source in followers for source in node.all_input_nodes):
            followers.add(node)
    return followers


def _works_in_place(node: fx.Node) -> bool:
    """Whether a node may do something beside returning its result."""
    if node.op == "call_module":
        return True
    if node.op not in ("call_function", "call_method"):
        return False
    if node.target in IN_PLACE:
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name.rstrip("_") != name and not name.startswith("_")
    return in_place or name == "setitem" or bool(node.kwargs.get("inplace"))


def _function(
    backbone: nn.Module, inputs: list[fx.Node], needed: list[fx.Node], result: Any
) -> Callable[..., Any]:
    """A function of the backbone and the inputs that computes the result."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    for node in needed:
        if node.op not in ("placeholder", "output"):
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(fx.node.map_arg(result, copies.__getitem__))
    # The generated method only reads attributes of self, which the backbone has too.
    forward: Callable[..., Any] = type(fx.GraphModule(backbone, graph)).forward
    return forward


def find_submodule(backbone: nn.Module, name: str, argument: str, others: str = "") -> nn.Module:
    """The submodule of a dotted name.

    Args:
        backbone: The module to look into.
        name: The dotted name.
        argument: The user's name of the argument, for the message.
        others: What else could be given.

    Raises:
        ValueError: If there is none; the message names the near ones.
    """
    modules = dict(backbone.named_modules(remove_duplicate=False))
    if name not in modules or name == "":
        known = [known for known in modules if known]
        near = difflib.get_close_matches(name, known, n=4, cutoff=0.3) or known[:4]
        raise ValueError(
            f"{argument} is {name!r}, but the backbone has no submodule of that name; use "
            f"{others}the dotted name of a submodule, such as {near}"
        )
    found: nn.Module = modules[name]
    return found
