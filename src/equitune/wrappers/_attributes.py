"""Which attributes of a backbone are those of its wrapper as well."""

from __future__ import annotations

from typing import Any

from torch import nn

HANDED_ON = (
    "config", "default_cfg", "device", "dtype", "main_input_name", "name_or_path", "num_classes",
    "pretrained_cfg",
)  # fmt: skip
"""What describes the backbone and computes nothing, so that the group has no part in it."""


class Around(nn.Module):
    """A module around a backbone, which describes itself as the backbone does.

    Attributes:
        accepts_loss_kwargs: Says to trainers that no loss is computed inside, since the mean of
            the losses of the copies is not the loss of the mean.
    """

    backbone: nn.Module
    accepts_loss_kwargs = False

    def __getattr__(self, name: str) -> Any:
        """Attributes of the backbone: those in ``HANDED_ON``, and no others."""
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            # While a pickle is read the backbone does not exist yet.
            backbone = self.__dict__.get("_modules", {}).get("backbone")
            if backbone is None or name.startswith("_") or not hasattr(backbone, name):
                raise
            if name not in HANDED_ON:
                raise AttributeError(
                    f"{error}; its backbone has {name!r}, which is not symmetrised: use "
                    f"unwrap().{name} for that of the backbone (a wrapper hands on "
                    f"{', '.join(HANDED_ON)} alone)"
                ) from None
        return getattr(backbone, name)
