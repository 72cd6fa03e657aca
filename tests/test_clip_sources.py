"""Zero-shot classifiers of the models of open_clip and transformers, tiny and random."""

import copy
import inspect
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clip_cases import doubled
from clip_models import END, spell, tiny_model
from equitune import EquiTune, EquiZero, ImageAction, c4, d4
from equitune.testing import assert_invariant
from equitune.vision import ZeroShotClassifier, embed_classes

transformers = pytest.importorskip("transformers", reason="install transformers")
open_clip = pytest.importorskip("open_clip", reason="install equitune[clip]")

C4, D4 = ImageAction(c4()), ImageAction(d4())
SIZE, LENGTH = 16, 77
NAMES = ["cat", "dog", "cat"]
FORMS = ["a photo of a {}.", "{}"]
LAYER = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip
VISION = {"image_size": SIZE, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4}
TEXT = {"context_length": LENGTH, "vocab_size": END + 1, "width": 16, "heads": 2, "layers": 1}


def spell_all(prompts, **options):
    """One token for each byte, filled up as asked."""
    tokens = spell(prompts)
    if options.get("padding") == "max_length":
        missing = options["max_length"] - tokens["input_ids"].shape[1]
        tokens = {key: F.pad(value, (0, missing)) for key, value in tokens.items()}
        del tokens["attention_mask"]
    return tokens


def spell_open(prompts):
    return spell_all(prompts, padding="max_length", max_length=LENGTH)["input_ids"]


def larger(model):
    """Larger than a start for training, so that what comes out differs."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.4)
    return model.double().eval()


def siglip():
    text = {"vocab_size": END + 1, "max_position_embeddings": 24, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": END, "projection_size": 16}  # fmt: skip
    config = transformers.SiglipConfig(
        text_config=LAYER | text, vision_config=LAYER | {"image_size": SIZE, "patch_size": 4}
    )
    model = larger(transformers.SiglipModel(config))
    with torch.no_grad():
        model.logit_scale.fill_(2.3)
        model.logit_bias.fill_(-10.0)
    return model


def coca():
    caption = {**TEXT, "context_length": LENGTH - 1}
    text = {**TEXT, "context_length": LENGTH - 1, "embed_cls": True, "output_tokens": True}
    vision = {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    return larger(
        open_clip.coca_model.CoCa(8, multimodal_cfg=caption, text_cfg=text, vision_cfg=vision)
    )


# Older releases have scalar ones alone.
NONSCALAR = {
    name: True
    for name in ("nonscalar_logit_scale",)
    if name in inspect.signature(open_clip.model.CustomTextCLIP).parameters
}
OPEN = {
    "CLIP": lambda: larger(open_clip.CLIP(8, VISION, TEXT)),
    "CLIP with a bias": lambda: larger(
        open_clip.CLIP(8, VISION, TEXT, init_logit_scale=2.3, init_logit_bias=-10.0)
    ),
    "CustomTextCLIP with a bias": lambda: larger(open_clip.model.CustomTextCLIP(
        8, VISION, TEXT, init_logit_scale=2.3, init_logit_bias=-10.0, **NONSCALAR
    )),
    "CustomTextCLIP": lambda: larger(open_clip.model.CustomTextCLIP(8, VISION, TEXT)),
    "CoCa": coca,
}  # fmt: skip


def pixels(count=5):
    return torch.randn(count, 3, SIZE, SIZE, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def expected_of_open_clip(model, images, forms=FORMS):
    spell_model = spell_open if not hasattr(model, "text_decoder") else spell_coca
    classes = open_clip.build_zero_shot_classifier(model, spell_model, NAMES, forms)
    bias = 0.0 if model.logit_bias is None else model.logit_bias
    return model.logit_scale.exp() * model.encode_image(images, normalize=True) @ classes + bias


def spell_coca(prompts):
    return spell_open(prompts)[:, : LENGTH - 1]


@pytest.mark.parametrize("name", OPEN)
def test_logits_are_those_of_open_clip(name):
    model, images = OPEN[name](), pixels()
    tokenizer = spell_coca if name == "CoCa" else spell_open
    classifier = ZeroShotClassifier.from_open_clip(model, tokenizer, NAMES, FORMS)
    expected = expected_of_open_clip(model, images)
    torch.testing.assert_close(classifier(images), expected, rtol=0, atol=1e-12)
    assert expected.std(0).max() > 1e-6
    loss = classifier.image_text_loss
    robust = EquiZero(classifier, D4, proxy_loss=loss, submodule="encoder")
    assert_invariant(robust, images, D4)
    with pytest.raises(AssertionError, match="not invariant"):
        assert_invariant(classifier, images, D4)
    assert torch.equal(robust.explain(images).output, robust(images))
    assert classifier.logit_bias == (0.0 if model.logit_bias is None else -10.0)
    assert ("logit_bias=-10" in repr(classifier)) == (model.logit_bias is not None)


def test_class_names_and_templates_of_open_clip():
    """Names that occur twice, templates that are functions: all as open_clip itself does it."""
    table = torch.randn(300, 16, dtype=torch.float64)

    class Counts:
        def encode_text(self, tokens, normalize=False):
            return F.normalize(tokens, dim=-1) if normalize else tokens

    embed = lambda prompts: torch.stack([table[list(p.encode())].sum(0) for p in prompts])  # noqa: E731
    names, forms = open_clip.IMAGENET_CLASSNAMES, open_clip.OPENAI_IMAGENET_TEMPLATES
    assert len(set(names)) < len(names) == 1000
    assert all(map(callable, forms))
    few = forms[:3]
    expected = open_clip.build_zero_shot_classifier(Counts(), embed, names, few).T
    torch.testing.assert_close(embed_classes(embed, names, few), expected, rtol=0, atol=1e-12)
    model = OPEN["CustomTextCLIP"]()
    classifier = ZeroShotClassifier.from_open_clip(model, spell_open, NAMES, forms[:8])
    images = pixels(2)
    torch.testing.assert_close(
        classifier(images), expected_of_open_clip(model, images, forms[:8]), rtol=0, atol=1e-12
    )


def test_logits_are_those_of_siglip():
    model, images = siglip(), pixels()
    prompts = ["a cat", "a much longer dog"]
    tokens = spell_all(prompts, padding="max_length", max_length=24)
    expected = model(pixel_values=images, **tokens).logits_per_image
    names = ["cat", "much longer dog"]
    for batch_size in (1, 256):
        # Filled up to the last position, which is read, whatever else is in the batch.
        classifier = ZeroShotClassifier.from_transformers(
            model, spell_all, names, ["a {}"], batch_size=batch_size
        )
        torch.testing.assert_close(classifier(images), expected, rtol=0, atol=1e-12)
    assert expected.std() > 1e-3
    robust = EquiTune(classifier, C4, submodule="encoder")
    assert_invariant(robust, images, C4)
    with pytest.raises(AssertionError, match="not invariant"):
        assert_invariant(classifier, images, C4)
    with pytest.raises(ValueError, match="24 tokens or fewer, which the model takes"):
        ZeroShotClassifier.from_transformers(model, lambda p, **_: spell(p), ["x" * 30], ["{}"])


def test_models_of_patches_are_refused():
    model = transformers.Siglip2Model(transformers.Siglip2Config(
        text_config=LAYER | {"vocab_size": 9, "projection_size": 16}, vision_config=LAYER
    ))  # fmt: skip
    with pytest.raises(TypeError, match=r"got a Siglip2Model, which takes patches .* SiglipModel"):
        ZeroShotClassifier.from_transformers(model, spell_all, NAMES)


SOURCES = {
    "transformers": lambda: (doubled(tiny_model()), spell_all, "from_transformers"),
    "siglip": lambda: (siglip(), spell_all, "from_transformers"),
    "open_clip": lambda: (OPEN["CLIP"](), spell_open, "from_open_clip"),
    "with a bias": lambda: (OPEN["CustomTextCLIP with a bias"](), spell_open, "from_open_clip"),
}


@pytest.mark.parametrize("source", SOURCES)
def test_the_scale_follows_that_of_the_model(source):
    model, tokenizer, name = SOURCES[source]()
    classifier = getattr(ZeroShotClassifier, name)(model, tokenizer, ["cat", "dog"], ["{}"])
    robust = EquiTune(classifier, C4, submodule="encoder")
    images = pixels(3)
    compiled = torch.compile(classifier, fullgraph=True, backend="eager")
    before, mean = classifier(images), robust(images)
    keys = list(classifier.state_dict())
    torch.testing.assert_close(compiled(images), before, rtol=0, atol=1e-12)
    bias = getattr(model, "logit_bias", None)
    at = 0.0 if bias is None else bias.item()

    # As an optimizer or load_state_dict do.
    with torch.no_grad():
        model.logit_scale.add_(0.5)
    torch.testing.assert_close(
        classifier(images), (before - at) * math.exp(0.5) + at, rtol=0, atol=1e-9
    )
    torch.testing.assert_close(robust(images), (mean - at) * math.exp(0.5) + at, rtol=0, atol=1e-9)
    torch.testing.assert_close(compiled(images), classifier(images), rtol=0, atol=1e-12)
    assert classifier.logit_scale == pytest.approx(math.exp(model.logit_scale.item()))
    if bias is not None:
        state = model.state_dict()
        state["logit_bias"] = state["logit_bias"] + 3
        moved = classifier(images)
        model.load_state_dict(state)
        torch.testing.assert_close(classifier(images), moved + 3, rtol=0, atol=1e-9)

    # Both learn, though they belong to the model and not to the classifier.
    F.cross_entropy(robust(images), torch.tensor([0, 1, 0])).backward()
    assert model.logit_scale.grad.abs() > 0
    assert list(classifier.state_dict()) == keys
    assert all(key.startswith("backbone.encoder.") for key in robust.state_dict())
    own = {id(p) for p in robust.parameters()}
    assert id(model.logit_scale) not in own

    for other in (copy.deepcopy(robust), pickle.loads(pickle.dumps(robust))):
        assert torch.equal(other(images), robust(images))
    robust.float()
    assert robust(images.float()).dtype == torch.float32


def test_a_bias_of_ones_own():
    classes, images = torch.randn(2, 108), torch.randn(3, 3, 6, 6)
    plain = ZeroShotClassifier(nn.Flatten(), classes, ["cat", "dog"], logit_scale=7)
    biased = ZeroShotClassifier(
        nn.Flatten(), classes, ["cat", "dog"], logit_scale=7, logit_bias=-10
    )
    torch.testing.assert_close(biased(images), plain(images) - 10)
    again = biased.with_encoder(nn.Flatten())
    assert (again.logit_scale, again.logit_bias) == (7, -10)
