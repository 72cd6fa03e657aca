"""One call of a backbone on copies of its arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from equitune._checks import require
from equitune._submodules import Reached, Reading, Watch, read_submodule
from equitune.actions import Action
from equitune.actions._tree import Key, common_classes, tensors
from equitune.groups import FiniteGroup


@final
@dataclass(frozen=True, eq=False)
class Ran:
    """What the backbone made of one flat batch of copies.

    Attributes:
        output: The raw output, for its structure.
        leaves: Its tensors, with the action of each.
        read: The activation that the weighting reads, if it reads one.
    """

    output: Any
    leaves: list[tuple[Action, Tensor]]
    read: Tensor | None

    def first(self, rows: int) -> Ran:
        """The same of the first copies alone."""
        leaves = [(action, leaf[:rows]) for action, leaf in self.leaves]
        return Ran(self.output, leaves, None if self.read is None else self.read[:rows])


@final
@dataclass(eq=False)
class Call:
    """One call: what is called, its arguments, and the actions of those that move.

    Attributes:
        backbone: The module M.
        args: The arguments by position.
        kwargs: Those by name.
        moved: The action of each argument that the group moves.
        leaves: Their tensors, with the action of each.
        group: The group.
        output_action: How it acts on the output.
        tap: The submodule that the weighting reads; None for none.
        cut: The submodule up to which the function is symmetrised; None for all of it.
        function: What runs the backbone; None for the backbone itself.
    """

    backbone: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    moved: dict[Key, Action]
    leaves: list[tuple[Action, Tensor]]
    group: FiniteGroup
    output_action: Action
    tap: Watch | None = None
    cut: Watch | None = None
    function: Callable[..., Any] | None = None

    @property
    def batch_size(self) -> int:
        """The number B of samples."""
        return self.leaves[0][1].shape[0]

    @property
    def training(self) -> bool:
        """Whether a part of the backbone trains, so that batches should hold whole orbits."""
        return any(module.training for module in self.backbone.modules())

    def classes(self, elements: Sequence[int]) -> list[Sequence[int]]:
        """Some elements, split so that the copies within each class have one shape."""
        classes = common_classes(self.leaves, self.group)
        if len(classes) == 1:
            return [elements]
        wanted = [[g for g in elements if g in members] for members in classes]
        return [members for members in wanted if members]

    def copies(self, elements: Sequence[int]) -> list[Tensor]:
        """The stacks (E, B, ...) of all moved tensors."""
        return [action.orbit(leaf, elements) for action, leaf in self.leaves]

    def evaluate(
        self, batches: Sequence[Sequence[Tensor]], combine: Callable[[list[Ran]], Any]
    ) -> Any:
        """Runs the function on flat batches of copies and goes on with what they are combined to.

        Where the function is symmetrised up to a submodule only, what is combined takes the place
        of that submodule's output in the last pass, and the rest runs on it, once.

        Args:
            batches: For each pass the moved tensors, (N, ...) each.
            combine: From what all passes gave to the output of the symmetrised part.
        """
        if self.cut is None:
            return combine([self._ran(*self.read(copies), copies) for copies in batches])
        ran: list[Ran] = []
        for copies in batches[:-1]:
            self._pass_to(self.cut, copies, ran.append)
        last, rows = batches[-1], batches[-1][0].shape[0]
        if rows in (1, self.batch_size) and self.group.order > 1:
            # What passes the cut by must not fit the mean, nor be spread over it.
            if self.training:
                must = "not end with as many copies as the batch has while the backbone trains"
                use = "Batches(), or another chunk_size"
                require(False, "runner", must, f"a last pass of {rows} of them", use)
            more = 1 if rows + 1 != self.batch_size else 2
            last = [torch.cat([stack, *[stack[:1]] * more]) for stack in last]
        return self._pass_to(self.cut, last, lambda final: combine([*ran, final.first(rows)]))

    def run(self, copies: Sequence[Tensor]) -> Any:
        """Calls the function with other tensors in the places of those that move."""
        args, kwargs, start = list(self.args), dict(self.kwargs), 0
        for key, action in self.moved.items():
            place: Any = args if isinstance(key, int) else kwargs
            stop = start + len(action.flatten(place[key]))
            place[key] = action.unflatten(place[key], copies[start:stop])
            start = stop
        try:
            return (self.function or self.backbone)(*args, **kwargs)
        except Reached:
            raise
        except Exception as error:
            error.add_note(
                f"The wrapper was called with {[tuple(x.shape) for _, x in self.leaves]}, and the "
                f"backbone with copies of the shapes {[tuple(c.shape) for c in copies]}. The first "
                "dimension is the batch: images are (B, C, H, W)."
            )
            raise

    def read(self, copies: Sequence[Tensor]) -> tuple[Any, Tensor | None]:
        """Runs the function on a flat batch of copies, and reads what the weighting reads in it.

        Args:
            copies: The moved tensors, (N, ...) each.

        Returns:
            The raw output, and the activation (N, ...); None if the weighting reads none.

        Raises:
            ValueError: If the submodule does not run exactly once, or returns other rows.
        """
        if self.tap is None:
            return self.run(copies), None
        output, read = read_submodule(self.tap, functools.partial(self.run, copies))
        _require_rows(read, copies)
        return output, read

    def _ran(self, output: Any, read: Tensor | None, copies: Sequence[Tensor]) -> Ran:
        leaves = self.output_action.flatten(output, "the backbone's output")
        for _, leaf in leaves:
            _require_rows(leaf, copies)
        return Ran(output, leaves, read)

    def _pass_to(self, cut: Watch, copies: Sequence[Tensor], then: Callable[[Ran], Any]) -> Any:
        """A pass in which the cut submodule returns what becomes of its output.

        Where nothing does, the pass ends there.

        Args:
            cut: The submodule.
            copies: The moved tensors, (N, ...) each.
            then: From what the pass gave so far to what becomes of it; None for nothing.
        """
        mixed: list[Any] = []
        reading = None if self.tap is None else Reading(self.tap)

        def see(activation: Any) -> Any:
            cut.require_once(1 + len(mixed))
            read = None
            if reading is not None:
                read = reading.tensor(f" before the cut at {cut.name!r}")
                _require_rows(read, copies)
            try:
                mixed.append(then(self._ran(activation, read, copies)))
            except ValueError as error:
                error.add_note(
                    f"submodule is {cut.name!r}; if this is about its activation, output_action "
                    "must be the action of that activation, or None where it is invariant"
                )
                raise
            if mixed[0] is None and not torch.compiler.is_compiling():
                raise Reached
            return mixed[0]

        try:
            with cut.opened(see), nullcontext() if reading is None else reading.opened():
                output = self.run(copies)
        except Reached:
            return None
        except (RuntimeError, IndexError) as error:
            if not mixed or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(_passes_by(cut, str(error))) from error
        cut.require_once(len(mixed))
        rows = copies[0].shape[0]
        if mixed[0] is not None and rows != self.batch_size:
            for tensor in tensors(output):
                if tensor.shape[:1] == (rows,):
                    raise ValueError(_passes_by(cut, f"{rows} rows come out"))
        return output


def _passes_by(cut: Watch, found: str) -> str:
    return (
        f"submodule is {cut.name!r}, but the backbone does not run on its mean over the group "
        f"({found}): something from before it, such as a shortcut, a mask or the batch size, "
        "passes the cut by; use a submodule that everything goes through, such as the module "
        "around it"
    )


def _require_rows(tensor: Tensor, copies: Sequence[Tensor]) -> None:
    rows = copies[0].shape[0]
    if tensor.shape[:1] != (rows,):
        raise ValueError(
            f"the backbone returned a tensor of shape {tuple(tensor.shape)} for a batch of "
            f"{rows}; its first dimension must be the batch (use Drop() for a field that "
            "has none, such as a loss)"
        )
