"""What the tests of CLIP share."""

import torch

__all__ = ["doubled", "pooled"]


def doubled(model):
    """A CLIPModel of transformers in float64 and eval mode.

    transformers 4.57 fills the mask of the texts with the smallest float64 in the default dtype.
    """

    def before(*_):
        torch.set_default_dtype(torch.float64)

    def after(*_):
        torch.set_default_dtype(torch.float32)

    model.text_model.register_forward_pre_hook(before)
    model.text_model.register_forward_hook(after, always_call=True)
    return model.double().eval()


def pooled(features):
    """The embeddings: older versions of transformers return them, newer ones a model output."""
    return getattr(features, "pooler_output", features)
