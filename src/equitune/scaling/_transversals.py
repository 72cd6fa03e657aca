"""One element of each right coset of a subgroup that the model respects already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from equitune._checks import require, require_type
from equitune.groups import Embedding, FiniteGroup
from equitune.runners import Call, Mix, Runner
from equitune.runners._base import weighed
from equitune.scaling._around import Around
from equitune.spaces import Values
from equitune.weightings import Copies, Weighting, tie_tolerance
from equitune.wrappers import Symmetrized


@final
class Transversal(Around):
    """Runs one element of each right coset Hg of a subgroup H that the model respects.

    If M(hx) = h M(x) for h in H, then (hg)^-1 M(hgx) = g^-1 M(gx): the copies of a right coset are
    equal, and ``|G| / |H|`` passes are enough. :meth:`check` tests that your model does respect H.

    There is one slot for each coset, and ``explain`` returns weights and scores of the slots, in
    the order of :meth:`equitune.FiniteGroup.right_transversal`. It is exact for equal weights, and
    for ``Best``, ``Learned`` and ``Canonical`` if all copies of a coset have one score: a score
    of the output that H does not change, such as the entropy of invariant logits. :meth:`check`
    tests this too. A weighting that counts copies, such as the k best ones, counts cosets.

    Where an outer runner hands on a part of the group, all elements of that part run. So put this
    runner outside: ``Transversal(subgroup, Subset(2))``.

    Args:
        subgroup: The subgroup with its embedding, such as ``d4().subgroup([1])``.
        runner: What runs the representatives; None for one batch.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the model that it is given to has another group.

    Example:
        >>> import torch
        >>> from equitune import EquiTune, ImageAction, Symmetrized, d4
        >>> from equitune.scaling import Transversal
        >>> action, turns = ImageAction(d4()), d4().subgroup([1])
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> respects_turns = EquiTune(backbone, action.restrict(turns))
        >>> model = Symmetrized(respects_turns, action, runner=Transversal(turns)).eval()
        >>> x = torch.rand(3, 1, 8, 8)
        >>> model.runner.check(model, x)
        >>> model.explain(x).weights.shape
        torch.Size([2, 3])
    """

    def __init__(self, subgroup: Embedding, runner: Runner | None = None) -> None:
        super().__init__(runner)
        self.subgroup = require_type("subgroup", subgroup, Embedding, "d4().subgroup([1])")
        self.elements = subgroup.group.right_transversal(subgroup)

    def __repr__(self) -> str:
        names = ", ".join(self.subgroup.group.names[h] for h in self.subgroup.elements)
        return f"Transversal({{{names}}}, {self.runner})"

    def run(self, call: Call, mix: Mix, elements: Sequence[int]) -> Any:
        self._require(call.group)
        some = self.elements if len(elements) == call.group.order else elements
        return self.runner.run(call, mix, some)

    def bind(self, model: Any) -> None:
        self._require(model.group)
        super().bind(model)

    def check(self, model: Symmetrized, x: Any = None, *args: Any, **kwargs: Any) -> None:
        """Refuses a model that does not respect the subgroup, by running all its copies once.

        Copies, and scores if the weighting has any, are compared within each coset. They may differ
        by :func:`equitune.weightings.tie_tolerance` of their dtype, relative to the largest entry.

        Args:
            model: The wrapper, in eval mode.
            x: A batch to call it with: random samples, since symmetric ones show less.
            *args: Further arguments of the call.
            **kwargs: Those by name.

        Raises:
            TypeError: If ``model`` is not a wrapper.
            ValueError: If it is of another group or in train mode; if the model does not respect
                an element of the subgroup, or the weighting tells the copies of a coset apart. The
                message names the element and the sample.
        """
        use = "Symmetrized(backbone, input_action, runner=Transversal(subgroup))"
        group = require_type("model", model, Symmetrized, use).group
        self._require(group)
        trains = any(module.training for module in model.modules())
        require(not trains, "model", "be in eval mode", "modules in train mode", "model.eval()")
        seen = Seen(model.weighting)
        with torch.no_grad():
            model.run(seen, x, args, kwargs, self.runner)
        for coset in group.right_cosets(self.subgroup):
            for g in coset[1:]:
                h = group.names[group.compose(g, group.inverse(coset[0]))]
                for stack in seen.copies:
                    found = _difference(stack, coset[0], g)
                    use = "a subgroup that it respects, or Batches() for all elements"
                    must = "be one that the model respects, M(hx) = h M(x)"
                    require(not found, "subgroup", must, f"h = {h}, {found}", use)
                found = "" if seen.scores is None else _difference(seen.scores, coset[0], g)
                must, got = (
                    "score the copies of a coset alike",
                    f"scores for which h = {h}, {found}",
                )
                use = "Uniform(), or a score of the output that the subgroup does not change"
                require(not found, "weighting", must, got, use)

    def _require(self, group: FiniteGroup) -> None:
        must, own = f"be one of the model's group of order {group.order}", self.subgroup.group
        got, use = f"one of a group of order {own.order}", "model.group.subgroup([...])"
        require(own == group, "subgroup", must, got, use)


@final
class Seen:
    """Takes the copies g^-1 M(gx) of all elements, and their scores.

    Attributes:
        copies: For each tensor of the output the stack (|G|, B, ...).
        scores: (|G|, B), the scores, or the weights where there are none; None for equal weights.
    """

    def __init__(self, weighting: Weighting) -> None:
        self.weighting, self.reads = weighting, weighting.reads
        self.copies: list[Tensor] = []
        self.scores: Tensor | None = None

    def ask(self, copies: Copies) -> None:
        self._score(copies)

    def __call__(self, copies: Copies) -> Any:
        if self.reads != "input":
            self._score(copies)
        device = copies.read("output")[0][1].device
        each = torch.eye(copies.count, device=device)[..., None].expand(-1, -1, copies.batch_size)
        means = copies.means(Values())
        self.copies = [torch.stack([mean(one) for one in each]) for mean in means]
        return copies.rebuild([stack[0] for stack in self.copies])

    def _score(self, copies: Copies) -> None:
        weights, scores = weighed(self.weighting, copies)
        self.scores = weights if scores is None else scores


def _difference(stack: Tensor, first: int, other: int) -> str:
    """How far two entries of a stack (|G|, B, ...) are apart, if they are; "" if not."""
    one, two = (
        stack[[first, other]].flatten(2) if stack.dim() > 2 else stack[[first, other], :, None]
    )
    off = torch.where(one == two, 0, (one - two).abs()).nan_to_num(torch.inf).amax(1)
    finite = stack.abs()[stack.isfinite()]
    allowed = tie_tolerance(stack.dtype) * float(finite.max()) if finite.numel() else 0.0
    sample = int(off.argmax())
    if float(off[sample]) <= allowed:
        return ""
    return f"off by {float(off[sample]):.3g} at sample {sample}, where {allowed:.3g} is allowed"
