"""What is timed: the plain model in all splits, what people write and install, and our wrappers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from equitune import (
    Action,
    Canonicalize,
    EquiTune,
    EquiZero,
    LambdaEquiTune,
    RegularFeatures,
    TrivialAction,
)
from equitune.text import EquiLM, OrbitLM, ResolvedWords
from in_turns import Run
from speed_models import SUBJECTS, Llama, of_images, word_sets
from speed_tables import LOOP, ON_B, ONE_BATCH

BY_HAND = "plain, a loop in channels_last"
FORMATS = {"": torch.contiguous_format, ", channels_last": torch.channels_last}
Function = Callable[[Any], Tensor]


@dataclass
class Contest:
    """One cell of the grid: everything that does the same work on the same inputs.

    Attributes:
        splits: The plain model on ready-made copies, in pieces of all sizes and formats; the
            fastest one is the floor.
        others: Everything else.
        left_out: Contenders that cannot run here, with the reason.
    """

    model: str
    order: int
    batch: int
    size: int
    training: bool = False
    compiled: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    splits: dict[str, Run] = field(init=False, default_factory=dict)
    others: dict[str, Run] = field(init=False, default_factory=dict)
    left_out: dict[str, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        subject = SUBJECTS[self.model]
        self.action: Action = subject.action(self.order, self.size)
        self.output = subject.output_action(self.action)
        self.plain = subject.make().to(self.device).train(self.training)
        # The default of a wrapper is measured on a model of its own: whatever it does to it.
        self.backbone = copy.deepcopy(self.plain)
        self.x = subject.inputs(self.batch, self.size).to(self.device)
        self.copies = self.action.orbit(self.x).flatten(0, 1).contiguous()
        self.others[ONE_BATCH] = self.work(self.plain, self.plain, [self.copies])
        if self.compiled:
            called = torch.compile(self.plain)
            self.others[f"{ONE_BATCH}, compiled"] = self.work(self.plain, called, [self.copies])
        else:
            self._add_splits()
            self._add_plain()
            self._add_libraries()
        for name, wrapper in self.wrappers().items():
            called = torch.compile(wrapper) if self.compiled else wrapper
            self.others[name + self.compiled * ", compiled"] = self.work(wrapper, called, [self.x])

    def work(self, module: nn.Module, function: Function, pieces: Sequence[Tensor]) -> Run:
        """A forward pass of all pieces, or a step: also the gradients, piece after piece."""

        @torch.inference_mode()
        def forward() -> None:
            for piece in pieces:
                function(piece)

        def step() -> None:
            for piece in pieces:
                function(piece).float().square().mean().backward()
            module.zero_grad()

        return step if self.training else forward

    def _add_splits(self) -> None:
        sizes = sorted({size for size in (1, 2, 4, 8, self.batch) if size < len(self.copies)})
        if self.training:  # smaller pieces have other statistics of BatchNorm
            sizes = [size for size in sizes if size >= self.batch]
        for suffix, memory_format in FORMATS.items():
            if suffix and self.x.dim() != 4:
                continue
            plain = copy.deepcopy(self.plain).to(memory_format=memory_format)
            copies = self.copies
            if self.x.dim() == 4:
                copies = copies.contiguous(memory_format=memory_format)
            for size in (*sizes, None):
                name = ONE_BATCH if size is None else f"plain, pieces of {size}"
                pieces = copies.split(size or len(copies))
                if name + suffix != ONE_BATCH:
                    self.splits[name + suffix] = self.work(plain, plain, pieces)

    def _add_plain(self) -> None:
        self.others[ON_B] = self.work(self.plain, self.plain, [self.x])
        self.others[LOOP] = self.work(self.plain, self.loop(self.plain), [self.x])
        if self.x.dim() == 4:
            plain = copy.deepcopy(self.plain).to(memory_format=torch.channels_last)
            x = self.x.contiguous(memory_format=torch.channels_last)
            self.others[BY_HAND] = self.work(plain, self.loop(plain), [x])

    def loop(self, plain: nn.Module) -> Function:
        """What a careful user writes: one pass for each element, and the mean."""
        group, action = self.action.group, self.action
        output = TrivialAction(group) if self.output is None else self.output

        def mean(x: Tensor) -> Tensor:
            total = 0
            for g in group.elements:
                total = total + output.transform(plain(action.transform(x, g)), group.inverse(g))
            return total / group.order

        return mean

    def _add_libraries(self) -> None:
        if SUBJECTS[self.model].action is not of_images:
            return
        for name, make in (("ttach", self.ttach), ("equiadapt", self.equiadapt)):
            try:
                module = make()
            except ImportError as error:
                self.left_out[name] = str(error)
            else:
                self.others[name] = self.work(module, module, [self.x])

    def ttach(self) -> nn.Module:
        """Its wrapper, for the same group."""
        import ttach

        flips = [] if self.order == 4 else [ttach.HorizontalFlip()]
        turns = [] if self.order == 2 else [ttach.Rotate90(angles=[0, 90, 180, 270])]
        dense = self.output is not None
        wrap = ttach.SegmentationTTAWrapper if dense else ttach.ClassificationTTAWrapper
        return wrap(self.plain, ttach.Compose([*flips, *turns]))

    def equiadapt(self) -> nn.Module:
        """Its canonicaliser with its own equivariant network, before the plain model."""
        import equiadapt
        from omegaconf import OmegaConf

        if self.order == 2 or self.output is not None:
            raise ImportError("its canonicaliser of images has rotations, and here no inverse")
        kind = "rotation" if self.order == 4 else "roto-reflection"
        shape = (3, self.size, self.size)
        network = equiadapt.CustomEquivariantNetwork(shape, 16, 5, kind, 4, 2, str(self.device))
        network.group_type, network.num_rotations = kind, 4  # release 0.1.2 reads them, sets none
        settings = OmegaConf.create(
            {"beta": 1.0, "input_crop_ratio": 1.0, "resize_shape": self.size}
        )
        first = equiadapt.GroupEquivariantImageCanonicalization(network, settings, shape)
        return nn.Sequential(first.to(self.device).train(self.training), self.plain)

    def wrappers(self) -> dict[str, nn.Module]:
        """Our wrappers as they come."""
        subject = SUBJECTS[self.model]
        given = (self.backbone, self.action, self.output)
        net, scorer = subject.weight_net(self.size), subject.scorer(self.size)
        made: dict[str, nn.Module] = {
            "EquiTune": EquiTune(*given),
            "LambdaEquiTune": LambdaEquiTune(*given, weight_net=net, weight_input=subject.tap),
            "EquiZero": EquiZero(*given, proxy_loss=subject.proxy_loss),
            "RegularFeatures": RegularFeatures(*given),
        }
        if not self.compiled:  # its number of copies depends on the data
            made["Canonicalize"] = Canonicalize(*given, weight_net=scorer)
        for wrapper in made.values():
            wrapper.to(self.device).train(self.training)
        if isinstance(self.plain, Llama) and not self.compiled:
            words = ResolvedWords(self.action, (), word_sets(self.order), ())
            fair: OrbitLM = EquiLM(self.plain.model, words)
            made["EquiLM"] = _Logits(fair).train(self.training)
        return made


class _Logits(nn.Module):
    def __init__(self, model: OrbitLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens).logits
