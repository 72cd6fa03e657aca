"""The phases in which a wrapper is trained, for use in any loop.

Each function sets the flags and the modes for its phase and returns the parameters to give to an
optimizer; the loop, the optimizer and the loss stay your own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equitune._checks import described, readable, require, require_strings, require_tensor
from equitune._submodules import find_submodule
from equitune.actions import Action
from equitune.weight_nets import FrozenFeatures, OnFeatures, OrbitWeightNet
from equitune.weightings import Learned, Weighting
from equitune.wrappers import LambdaEquiTune, OrbitModule, Symmetrized

__all__ = [
    "backbone_phase",
    "joint_phase",
    "probing_phase",
    "upright_loss",
    "weights_phase",
    "with_frozen_features",
]


def weights_phase(model: Symmetrized) -> list[nn.Parameter]:
    """Phase one: the weights learn, the backbone is frozen (second paper, appendix D.4).

    Args:
        model: The wrapper; it is put into train mode, its backbone stays in eval mode.

    Returns:
        The parameters of the weighting that learn. What you had fixed stays so, such as those of
        :class:`equitune.weight_nets.FrozenFeatures`.

    Raises:
        TypeError: If the model has no weights to learn.
        ValueError: If the weighting has no parameters to learn.

    Example:
        >>> import torch
        >>> from torch.nn import functional as F
        >>> from equitune import ImageAction, LambdaEquiTune, c4
        >>> from equitune.training import upright_loss, weights_phase
        >>> from equitune.weight_nets import MlpWeightNet
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> model = LambdaEquiTune(
        ...     backbone, ImageAction(c4()), weight_net=MlpWeightNet(10), weight_input="output"
        ... )
        >>> optimizer = torch.optim.AdamW(weights_phase(model), lr=1e-3)
        >>> images, labels = torch.rand(5, 1, 8, 8), torch.arange(5)
        >>> explanation = model.explain(images)
        >>> loss = F.cross_entropy(explanation.output, labels) + upright_loss(explanation.scores)
        >>> loss.backward()
        >>> optimizer.step()
    """
    weighting = _require_learning(model)
    learned = _free_weights(weighting)
    use = "a weight_net that has some, such as equitune.weight_nets.MlpWeightNet, and fix not all"
    require(bool(learned), "model", "have parameters to learn in its weighting", weighting, use)
    model.freeze_backbone().train()
    return learned


def backbone_phase(model: OrbitModule) -> list[nn.Parameter]:
    """Phase two: the backbone is fine-tuned, and the weights, if they are learned, are fixed.

    What was not trainable before the backbone was frozen stays so.

    Args:
        model: Any wrapper; it is put into train mode, its weighting into eval mode.

    Returns:
        The parameters of the backbone that learn.

    Raises:
        TypeError: If the model is not a wrapper.
        ValueError: If fixed weights would read a backbone that moves away under them: a
            ``weight_input`` that is not ``"input"`` (see :func:`with_frozen_features`); or if no
            parameter of the backbone learns, such as after another wrapper froze it.
    """
    weighting = _weighting_of(model)
    if weighting is not None:
        drifts = weighting.reads not in (None, "input") and any(
            True for _ in weighting.parameters()
        )
        must = "have fixed weights that stay what they are"
        got = f"weight_input {weighting.reads!r}, which would drift while the backbone learns"
        use = "backbone_phase(with_frozen_features(model)), or let both learn with joint_phase"
        require(not (weighting.learned and drifts), "model", must, got, use)
        # Also scorers whose choice has no gradient: DDP would wait for theirs.
        weighting.freeze()
    return _train_backbone(model)


def joint_phase(model: Symmetrized) -> list[nn.Parameter]:
    """The backbone and the weights learn together.

    Args:
        model: The wrapper; it is put into train mode.

    Returns:
        The parameters of both that learn; what you had fixed stays so.

    Raises:
        TypeError: If the model has no weights to learn.
        ValueError: If no parameter of the backbone learns, such as after another wrapper froze it.
    """
    weighting = _require_learning(model)
    return [*_train_backbone(model), *_free_weights(weighting)]


def probing_phase(model: OrbitModule, submodules: Sequence[str]) -> list[nn.Parameter]:
    """Linear probing: only named submodules of the backbone learn (second paper, section 5.2.2).

    The backbone as a whole stays in eval mode, so that its features do not change.

    Args:
        model: Any wrapper; its weighting is fixed. Unless it reads ``"input"``, it should read
            what stands before the submodules.
        submodules: Their dotted names in the backbone, such as its last layer.

    Returns:
        The parameters of these submodules.

    Raises:
        TypeError: If the model is not a wrapper, or ``submodules`` is one string.
        ValueError: If no submodule has such a name, or none has parameters.
    """
    weighting = _weighting_of(model)
    use = "a list of dotted names, such as ['head']"
    submodules = require_strings("submodules", submodules, use)
    modules = [find_submodule(model.backbone, name, "submodules") for name in submodules]
    probed = dict.fromkeys(p for module in modules for p in module.parameters())
    use = "the names of layers with weights"
    require(bool(probed), "submodules", "have parameters to learn", [*submodules], use)
    names = [name for name, p in model.backbone.named_parameters() if p in probed]
    model.freeze_backbone(probed=names)
    if weighting is not None and weighting.learned:
        weighting.freeze()
    model.train()
    return list(probed)


def upright_loss(scores: Tensor | None, elements: Tensor | None = None) -> Tensor:
    """The negative log-likelihood of the upright copy under the weights, in nats.

    For data that are known to be upright, or to have been turned in a known way. Add it to the
    loss of the averaged prediction, or train a weight network for ``Canonicalize`` by it alone: it
    needs no labels. For the identity it is the prior regularisation of equiadapt (Mondal et al.,
    2023): the prior is that the data lie in their canonical pose.

    Args:
        scores: (|G|, B), the logits of lambda: ``model.explain(x).scores``.
        elements: (B,) int64, for each sample the element g whose copy gx is upright; the inverse
            of the element by which it was turned. Default the identity.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        TypeError: If scores are missing, as those of ``EquiTune`` are, or ``elements`` is not
            int64.
        ValueError: If a shape does not fit, or ``elements`` on the CPU names no element.

    Example:
        >>> import torch
        >>> from equitune.training import upright_loss
        >>> float(upright_loss(torch.zeros(4, 2)).exp())
        4.0
    """
    use = "(|G|, B), model.explain(x).scores of a LambdaEquiTune"
    scores = require_tensor("scores", scores, use)
    require(scores.dim() == 2, "scores", "have two dimensions", tuple(scores.shape), use)
    order, batch = scores.shape
    if elements is None:
        elements = torch.zeros(batch, dtype=torch.int64, device=scores.device)
    require_tensor("elements", elements, "(B,), int64")
    int64 = elements.dtype == torch.int64
    require(int64, "elements", "be int64", elements.dtype, "elements.long()", TypeError)
    got = f"shape {tuple(elements.shape)} for scores of shape {tuple(scores.shape)}"
    use = f"one of shape ({batch},)"
    require(elements.shape == (batch,), "elements", "have one element per sample", got, use)
    if readable(elements) and len(outside := elements[(elements < 0) | (elements >= order)]):
        held = f"`elements` holds {int(outside[0])}, but the scores are of {order} elements"
        raise ValueError(f"{held}; use 0 to {order - 1}")
    return F.cross_entropy(scores.T, elements)


def with_frozen_features(model: Symmetrized) -> LambdaEquiTune:
    """The same model, whose weight network reads a frozen copy of the backbone.

    In phase two the backbone learns while the weights are fixed, and its own activation would
    drift away from what they learned to read; the paper keeps a frozen extractor (appendix D.4).
    It costs a second pass, up to the layer that is read. The extractor gets the first argument
    alone: further arguments of a call, which keep their defaults there, reach the backbone only.

    Args:
        model: One that reads the backbone's output or one of its submodules, of a backbone of one
            tensor, such as a ``LambdaEquiTune``. It shares its backbone and its weight network with
            the new one: use the new one from now on.

    Returns:
        The new model, with ``weight_input="input"``; in the mode of the old one.

    Raises:
        TypeError: If the weights are not those of :class:`equitune.weightings.Learned`, or the
            model is of a kit that this does not fit.
        ValueError: If its weights read the input already, or the group moves something else than
            one tensor, the first argument.
    """
    weighting = _require_learning(model)
    if not isinstance(model, LambdaEquiTune) or not isinstance(weighting, Learned):
        raise TypeError(f"`model` must be a LambdaEquiTune, got {described(model)}; use one")
    steady = "weight_input 'input', which does not drift"
    require(weighting.reads != "input", "model", "read its backbone", steady, "it as it is")
    action = model.input_action
    moved = "a structure" if isinstance(action, Action) else f"the arguments {list(action)}"
    must = "move one tensor, which is what a frozen extractor gets"
    use = "FrozenFeatures in a weight_net of your own, or train both with joint_phase"
    one = isinstance(action, Action) and action.fields is None
    require(one, "model", must, moved, use)
    cut, read = model.submodule, str(weighting.reads)
    if read == "output" and cut is not None:
        read = cut
    size = getattr(model.runner, "chunk_size", None)
    features, net = FrozenFeatures(model.backbone, read, chunk_size=size), weighting.weight_net
    join: type[nn.Module] = OnFeatures if isinstance(net, OrbitWeightNet) else nn.Sequential
    reading = join(features, net)
    reading.training = net.training
    parts = model.backbone, model.input_action, model.output_action
    frozen = LambdaEquiTune(*parts, weight_net=reading, chunk_size=size, submodule=cut)
    # Nothing was asked to change: neither the mode nor what is frozen.
    frozen.training = model.training
    if model.frozen:
        frozen.freeze_backbone(model.learning)
    if weighting.frozen:
        inner = next(name for name, m in frozen.weighting.named_modules() if m is net)
        frozen.weighting.freeze(
            [name.replace("weight_net", inner, 1) for name in weighting.learning]
        )
    return frozen


def _train_backbone(model: OrbitModule) -> list[nn.Parameter]:
    model.unfreeze_backbone()
    model.train()
    learned = [p for p in model.backbone.parameters() if p.requires_grad]
    some = bool(learned) or not [*model.backbone.parameters()]
    must, got = "have a backbone with parameters that learn", "one that is fixed everywhere"
    use = "unfreeze_backbone() of the other one first if another wrapper froze it"
    require(some, "model", must, got, use)
    return learned


def _free_weights(weighting: Weighting) -> list[nn.Parameter]:
    weighting.unfreeze()
    weighting.train(weighting.training)
    return [p for p in weighting.parameters() if p.requires_grad]


def _weighting_of(model: object) -> Weighting | None:
    wrapper = isinstance(model, OrbitModule)
    require(wrapper, "model", "be a wrapper", described(model), "one such as EquiTune", TypeError)
    weighting: Weighting | None = getattr(model, "weighting", None)
    return weighting


def _require_learning(model: object) -> Weighting:
    weighting: Any = getattr(model, "weighting", None)
    learns = isinstance(weighting, Weighting) and weighting.learned
    use = "a LambdaEquiTune or another model with the weighting Learned"
    require(learns, "model", "have weights to learn", described(model), use, TypeError)
    return cast(Weighting, weighting)
