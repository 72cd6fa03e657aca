"""Rows of the table of cases for what makes a graph of a model: compilers and exporters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from functorch.compile import aot_module_simplified, nop
from torch import Tensor, nn

from cases import CASES, WRAPPERS, Attention, Case
from equitune import LambdaEquiTune, RegularFeatures

MODELS: dict[str, Callable[..., nn.Module]] = {
    **{name: make for name, make in WRAPPERS.items() if "pieces" not in name},
    "RegularFeatures": RegularFeatures,
    "RegularFeatures and a head": lambda *a: nn.Sequential(RegularFeatures(*a), nn.Tanh()),
    "LambdaEquiTune with attention": lambda *a: LambdaEquiTune(
        *a, weight_net=Attention(), weight_input="input"
    ),
}


def possible(name: str, case: Case) -> bool:
    """Whether they fit: attention sees one stack, and a layer one tensor."""
    square, tensor = "5x7" not in case.name, "dict" not in case.name
    return (square or "attention" not in name) and (tensor or "head" not in name)


def rows(shift: int = 0) -> list[tuple[str, Case]]:
    """Each case with one wrapper, in turn; with another shift, with other ones."""
    found = []
    for i, case in enumerate(CASES):
        names = [name for name in MODELS if possible(name, case)]
        found.append((names[(i + shift) % len(names)], case))
    return found


def build(name: str, case: Case) -> nn.Module:
    """The model of a row, in float32."""
    torch.manual_seed(0)
    return MODELS[name](case.backbone(), case.input_action, case.output_action)


def tensors(output: Any) -> list[Tensor]:
    """The tensors of an output."""
    return [*output.values()] if isinstance(output, dict) else [output]


class Counting:
    """A backend of ``torch.compile`` that counts the graphs which run.

    A graph may be handed to a backend again, and only the last one of these is run.
    """

    def __init__(self) -> None:
        self.ran: set[Any] = set()

    @property
    def graphs(self) -> int:
        return len(self.ran)

    def __call__(self, graph: Any, inputs: Any) -> Any:
        compiled = aot_module_simplified(
            graph, inputs, fw_compiler=nop, keep_inference_input_mutations=True
        )

        def run(*args: Any) -> Any:
            self.ran.add(compiled)
            return compiled(*args)

        return run
