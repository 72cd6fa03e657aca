"""The phases in which a wrapper is trained, for use in any loop.

Each function sets the flags and the modes for its phase and returns the parameters to give to an
optimizer; the loop, the optimizer and the loss stay your own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equitune._checks import readable, require_strings
from equitune._cut import find_submodule
from equitune.actions import Action
from equitune.weights import FrozenFeatures, OnFeatures, OrbitWeightNet
from equitune.wrappers import Canonicalize, LambdaEquiTune
from equitune.wrappers._lambda_equitune import LambdaSymmetrizer
from equitune.wrappers._orbit import OrbitModule
from equitune.wrappers._selection import SelectingSymmetrizer

__all__ = [
    "backbone_phase",
    "joint_phase",
    "probing_phase",
    "upright_loss",
    "weights_phase",
    "with_frozen_features",
]


def weights_phase(model: LambdaSymmetrizer) -> list[nn.Parameter]:
    """Phase one: the weight network learns, the backbone is frozen (second paper, appendix D.4).

    Args:
        model: The wrapper; it is put into train mode, its backbone stays in eval mode.

    Returns:
        The parameters of the weight network that learn. What you had fixed stays so, such as
        those of :class:`FrozenFeatures`.

    Raises:
        TypeError: If the model has no weights to learn.
        ValueError: If the weight network has no parameters to learn.

    Example:
        >>> import torch
        >>> from torch.nn import functional as F
        >>> from equitune import ImageAction, LambdaEquiTune, c4
        >>> from equitune.training import upright_loss, weights_phase
        >>> from equitune.weights import MlpWeightNet
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> model = LambdaEquiTune(
        ...     backbone, ImageAction(c4()), weight_net=MlpWeightNet(10), weight_input="output"
        ... )
        >>> optimizer = torch.optim.AdamW(weights_phase(model), lr=1e-3)
        >>> images, labels = torch.rand(5, 1, 8, 8), torch.arange(5)
        >>> told = model.explain(images)
        >>> loss = F.cross_entropy(told.output, labels) + upright_loss(told.scores)
        >>> loss.backward()
        >>> optimizer.step()
    """
    _require_lambda(model)
    learned = _free_weights(model)
    if not learned:
        raise ValueError(
            f"model has a weight_net of type {type(model.weight_net).__name__} without parameters "
            "to learn; use LambdaEquiTune with one that has some, such as equitune.weights."
            "MlpWeightNet, and do not set requires_grad of all of them to False"
        )
    model.freeze_backbone().train()
    return learned


def backbone_phase(model: OrbitModule) -> list[nn.Parameter]:
    """Phase two: the backbone is fine-tuned, and the weight network, if there is one, is fixed.

    What was not trainable before the backbone was frozen stays so.

    Args:
        model: Any wrapper; it is put into train mode, a weight network into eval mode.

    Returns:
        The parameters of the backbone that learn.

    Raises:
        TypeError: If the model is no wrapper.
        ValueError: If fixed weights would read a backbone that moves away under them: a
            ``weight_input`` that is not ``"input"``. See :func:`with_frozen_features`.
    """
    _require_wrapper(model)
    if isinstance(model, LambdaSymmetrizer):
        if model.weight_input != "input":
            frozen = "give backbone_phase(with_frozen_features(model)), or "
            raise ValueError(
                f"model reads weight_input {model.weight_input!r} from the backbone, and a fixed "
                "weight_net would drift while the backbone learns; "
                f"{frozen if isinstance(model, LambdaEquiTune) else ''}let both learn with "
                "joint_phase(model)"
            )
        model.freeze_weight_net()
    for name in ("weight_net", "proxy_loss"):
        # Scorers whose choice has no gradient: DDP would wait for theirs.
        scorer = getattr(model, name, None)
        selecting = isinstance(model, Canonicalize | SelectingSymmetrizer)
        if selecting and isinstance(scorer, nn.Module):
            scorer.requires_grad_(False)
    return _train_backbone(model)


def joint_phase(model: LambdaSymmetrizer) -> list[nn.Parameter]:
    """The backbone and the weight network learn together.

    Args:
        model: The wrapper; it is put into train mode.

    Returns:
        The parameters of both that learn; what you had fixed stays so.

    Raises:
        TypeError: If the model is no ``LambdaEquiTune``.
    """
    _require_lambda(model)
    learned = _free_weights(model)
    return [*_train_backbone(model), *learned]


def probing_phase(model: OrbitModule, submodules: Sequence[str]) -> list[nn.Parameter]:
    """Linear probing: only named submodules of the backbone learn (second paper, section 5.2.2).

    The backbone as a whole stays in eval mode, so that its features do not change.

    Args:
        model: Any wrapper; a weight network is fixed. Unless it reads ``"input"``, it should read
            what stands before the submodules.
        submodules: Their dotted names in the backbone, such as its last layer.

    Returns:
        The parameters of these submodules.

    Raises:
        TypeError: If the model is no wrapper, or ``submodules`` is one string.
        ValueError: If there is no such submodule, or none has parameters.
    """
    _require_wrapper(model)
    if isinstance(submodules, str):
        raise TypeError(f"submodules is {submodules!r}; use a list of names, [{submodules!r}]")
    submodules = require_strings("submodules", submodules, "a list of dotted names")
    modules = [find_submodule(model.backbone, name, "submodules") for name in submodules]
    probed = list(dict.fromkeys(p for module in modules for p in module.parameters()))
    if not probed:
        raise ValueError(f"submodules is {list(submodules)}, which have no parameters to learn")
    model.freeze_backbone()
    if isinstance(model, LambdaSymmetrizer):
        model.freeze_weight_net()
    for parameter in probed:
        parameter.requires_grad_(True)
    model.train()
    return probed


def upright_loss(scores: Tensor | None, elements: Tensor | None = None) -> Tensor:
    """The negative log-likelihood of the upright copy under the weights, in nats.

    For data that are known to be upright, or to have been turned in a known way. Add it to the
    loss of the averaged prediction.

    Args:
        scores: (|G|, B), the logits of lambda: ``model.explain(x).scores``.
        elements: (B,) int64, for each sample the element g whose copy gx is upright; the inverse
            of the element by which it was turned. Default the identity.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        TypeError: If there are no scores, as for ``EquiTune``, or ``elements`` is not int64.
        ValueError: If a shape does not fit, or ``elements`` on the CPU names no element.

    Example:
        >>> import torch
        >>> from equitune.training import upright_loss
        >>> float(upright_loss(torch.zeros(4, 2)).exp())
        4.0
    """
    if elements is not None and not isinstance(elements, Tensor):
        raise TypeError(f"elements is a {type(elements).__name__}; use an int64 tensor (B,)")
    if not isinstance(scores, Tensor):
        raise TypeError(
            f"scores is a {type(scores).__name__}; use those of a LambdaEquiTune, "
            "model.explain(x).scores"
        )
    if scores.dim() != 2:
        raise ValueError(f"scores has shape {tuple(scores.shape)}; use (|G|, B)")
    order, batch = scores.shape
    if elements is None:
        elements = torch.zeros(batch, dtype=torch.int64, device=scores.device)
    if elements.dtype != torch.int64:
        raise TypeError(f"elements has dtype {elements.dtype}; use int64 elements")
    if elements.shape != (batch,):
        raise ValueError(
            f"elements has shape {tuple(elements.shape)} for scores of shape "
            f"{tuple(scores.shape)}; use one element per sample, ({batch},)"
        )
    if readable(elements):
        outside = elements[(elements < 0) | (elements >= order)]
        if len(outside):
            raise ValueError(
                f"elements holds {int(outside[0])}, but the scores are of {order} elements; use "
                f"0 to {order - 1}"
            )
    return F.cross_entropy(scores.T, elements)


def with_frozen_features(model: LambdaEquiTune) -> LambdaEquiTune:
    """The same model, whose weight network reads a frozen copy of the backbone.

    In phase two the backbone learns while the weights are fixed, and its own activation would
    drift away from what they learned to read; the paper keeps a frozen extractor (appendix D.4).
    It costs a second pass. The extractor gets the first argument alone: further arguments of a
    call, which keep their defaults there, reach the backbone only.

    Args:
        model: One that reads the backbone's output or one of its submodules, of a backbone of one
            tensor. It shares its backbone and its weight network with the new one: use the new
            one from now on.

    Returns:
        The new model, with ``weight_input="input"``; in the mode of the old one.

    Raises:
        TypeError: If the model is no ``LambdaEquiTune``.
        ValueError: If its weights read the input already, or the group moves something else than
            one tensor, the first argument.
    """
    _require_lambda(model, LambdaEquiTune)
    if model.weight_input == "input":
        raise ValueError("model reads weight_input 'input', which does not drift; use it as it is")
    action = model.input_action
    if not isinstance(action, Action) or action.fields is not None:
        moved = "a structure" if isinstance(action, Action) else f"the arguments {list(action)}"
        raise ValueError(
            f"model moves {moved}, but a frozen extractor gets one tensor; put FrozenFeatures "
            "into a weight_net of your own, or train both with joint_phase"
        )
    read = model.weight_input
    if read == "output" and model.at is not None:
        read = model.at
    features = FrozenFeatures(model.backbone, read, chunk_size=model.chunk_size)
    net = model.weight_net
    reading = (
        OnFeatures(features, net)
        if isinstance(net, OrbitWeightNet)
        else nn.Sequential(features, net)
    )
    frozen = LambdaEquiTune(
        model.backbone,
        model.input_action,
        model.output_action,
        weight_net=reading,
        chunk_size=model.chunk_size,
        at=model.at,
    )
    # Nothing was asked to change: neither the mode nor what is frozen.
    frozen.training = model.training
    frozen._thawed = model._thawed
    if model._thawed_weights is not None:
        inner = "weight_net" if isinstance(reading, OnFeatures) else "1"
        frozen._thawed_weights = tuple(f"{inner}.{name}" for name in model._thawed_weights)
    reading.training = net.training
    return frozen


def _train_backbone(model: OrbitModule) -> list[nn.Parameter]:
    model.unfreeze_backbone()
    model.train()
    return [p for p in model.backbone.parameters() if p.requires_grad]


def _free_weights(model: LambdaSymmetrizer) -> list[nn.Parameter]:
    model.unfreeze_weight_net()
    return [p for p in model.weight_net.parameters() if p.requires_grad]


def _require_wrapper(model: object) -> None:
    if not isinstance(model, OrbitModule):
        raise TypeError(f"model is a {type(model).__name__}; use a wrapper such as EquiTune")


def _require_lambda(model: object, kind: type[LambdaSymmetrizer] = LambdaSymmetrizer) -> None:
    if not isinstance(model, kind):
        others = "" if kind is LambdaEquiTune else " or a LambdaSeq2Seq"
        raise TypeError(f"model is a {type(model).__name__}; use a LambdaEquiTune{others}")
