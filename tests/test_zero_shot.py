"""CLIP as a zero-shot classifier: the formulas, written out, on tiny random models."""

import copy
import json
import math
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from equitune import (
    Best,
    EquiTune,
    EquiZero,
    ImageAction,
    LambdaEquiTune,
    Learned,
    RegularFeatures,
    Symmetrized,
    Uniform,
    c4,
    d4,
)
from equitune.losses import negative_similarity
from equitune.testing import assert_equivariant, assert_invariant, assert_matches_formula
from equitune.training import backbone_phase, upright_loss, weights_phase, with_frozen_features
from equitune.vision import (
    DEFAULT_TEMPLATES,
    PHOTO_TEMPLATES,
    ImageTextLoss,
    UnitEmbeddings,
    ZeroShotClassifier,
    embed_classes,
)
from equitune.weight_nets import AttentionWeightNet, MlpWeightNet

transformers = pytest.importorskip("transformers", reason="install transformers")

import clip_zero_shot  # noqa: E402
import record  # noqa: E402
from clip_cases import doubled, pooled  # noqa: E402
from clip_models import (  # noqa: E402
    END,
    TINY_SIZE,
    load_open_clip,
    load_transformers,
    random_pictures,
    spell,
    tiny_model,
)
from test_weightings import TopK  # noqa: E402

C4, D4 = ImageAction(c4()), ImageAction(d4())
NAMES = ("cat", "dog", "motor car", "bee", "{braces}")
TEMPLATES = ("a photo of a {}.", "the {} is not a {{}}", "{}")
WIDTH = 8


class Uneven(nn.Module):
    """A random encoder whose embeddings are of very different lengths, and never centred."""

    def __init__(self, width=5):
        super().__init__()
        self.linear = nn.Linear(3 * 6 * 6, width)
        self.length = nn.Linear(3 * 6 * 6, 1)

    def forward(self, images):
        flat = images.flatten(1)
        return (self.linear(flat) + 0.5) * (4 * self.length(flat)).exp()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def images():
    return torch.randn(7, 3, 6, 6, dtype=torch.float64)


@pytest.fixture
def classifier():
    classes = torch.randn(4, 5, dtype=torch.float64)
    return ZeroShotClassifier(Uneven().double(), classes, NAMES[:4], logit_scale=7.0)


def from_tiny_transformers():
    model = doubled(tiny_model())
    return model, ZeroShotClassifier.from_transformers(model, spell, NAMES, TEMPLATES)


def from_tiny_open_clip():
    open_clip = pytest.importorskip("open_clip", reason="install equitune[clip]")
    vision = open_clip.CLIPVisionCfg(
        layers=1, width=16, head_width=8, image_size=TINY_SIZE, patch_size=4
    )
    text = open_clip.CLIPTextCfg(
        context_length=77, vocab_size=END + 1, width=16, heads=2, layers=1
    )  # fmt: skip
    model = open_clip.CLIP(WIDTH, vision, text).double().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.4)
    return model, ZeroShotClassifier.from_open_clip(model, spell_77, NAMES, TEMPLATES)


def spell_77(prompts):
    ids = spell(prompts)["input_ids"]
    return F.pad(ids, (0, 77 - ids.shape[1]))


SOURCES = {"transformers": from_tiny_transformers, "open_clip": from_tiny_open_clip}
WRAPS = {
    "EquiTune": lambda classifier, *a, **k: EquiTune(classifier, *a, **k),
    "EquiZero": lambda classifier, *a, **k: EquiZero(
        classifier, *a, proxy_loss=classifier.image_text_loss, **k
    ),
    "LambdaEquiTune": lambda classifier, *a, **k: LambdaEquiTune(
        classifier, *a, weight_input="output",
        weight_net=MlpWeightNet(classifier.class_embeddings.shape[1]), **k
    ),
    "LambdaEquiTune, attention": lambda classifier, *a, **k: LambdaEquiTune(
        classifier, *a, weight_input="output",
        weight_net=AttentionWeightNet(classifier.class_embeddings.shape[1], 8, 2), **k
    ),
}  # fmt: skip


def symmetrized(classifier, action, wrap="EquiTune"):
    return WRAPS[wrap](classifier, action, submodule="encoder").double()


def unit(x):
    return x / (x * x).sum(-1, keepdim=True).sqrt()


def close(actual, expected, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


# The text side, once.


def literal_classes(embed, names, templates):
    rows = []
    for name in names:
        total = 0
        for template in templates:
            total = total + unit(embed([template.replace("{}", name)])[0])
        rows.append(unit(total / len(templates)))
    return torch.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 4, 256])
def test_class_embeddings_are_unit_means_of_unit_prompts(batch_size):
    table = torch.randn(300, 6, dtype=torch.float64)

    def embed(prompts):
        # Of very different lengths, so that the mean of raw ones is another.
        rows = [table[list(prompt.encode())].sum(0) * len(prompt) ** 3 for prompt in prompts]
        return torch.stack(rows)

    classes = embed_classes(embed, NAMES, TEMPLATES, batch_size=batch_size)
    close(classes, literal_classes(embed, NAMES, TEMPLATES))
    raw = embed([t.replace("{}", n) for n in NAMES for t in TEMPLATES]).view(5, 3, 6).mean(1)
    assert (classes - unit(raw)).abs().max() > 1e-3


def test_progress_sees_every_prompt_once_and_other_braces_are_text():
    seen = []

    def watched(batches):
        for batch in batches:
            seen.extend(batch)
            yield batch

    embed_classes(lambda p: torch.ones(len(p), 2), NAMES[3:], TEMPLATES, batch_size=4,
                  progress=watched)  # fmt: skip
    assert seen == [
        "a photo of a bee.", "the bee is not a {bee}", "bee",
        "a photo of a {braces}.", "the {braces} is not a {{braces}}", "{braces}",
    ]  # fmt: skip


def test_half_precision_texts_are_averaged_in_float32():
    embeddings = embed_classes(lambda p: torch.full((len(p), 3), 300.0).half(), NAMES, TEMPLATES)
    assert embeddings.dtype == torch.float32
    close(embeddings, torch.full((5, 3), 3**-0.5), atol=1e-6)


def test_the_templates_that_come_along():
    assert set(DEFAULT_TEMPLATES) < set(PHOTO_TEMPLATES)
    assert len(set(PHOTO_TEMPLATES)) == len(PHOTO_TEMPLATES) > 40
    assert all(template.count("{}") == 1 for template in PHOTO_TEMPLATES)


def test_equal_names_are_classes_of_their_own_and_equal_templates_count_repeatedly():
    table = torch.randn(300, 6, dtype=torch.float64)
    embed = lambda prompts: torch.stack([table[list(p.encode())].sum(0) for p in prompts])  # noqa: E731
    names = ("crane", "missile", "crane")
    classes = embed_classes(embed, names, TEMPLATES)
    close(classes, literal_classes(embed, names, TEMPLATES))
    assert torch.equal(classes[0], classes[2])
    twice = embed_classes(embed, names, [*TEMPLATES, TEMPLATES[0]])
    close(twice, literal_classes(embed, names, [*TEMPLATES, TEMPLATES[0]]))
    assert (twice - classes).abs().max() > 1e-6
    model = ZeroShotClassifier(Uneven(), torch.randn(3, 5), names)
    assert model(torch.randn(2, 3, 6, 6)).shape == (2, 3)


def test_templates_that_are_functions():
    table = torch.randn(300, 6, dtype=torch.float64)
    embed = lambda prompts: torch.stack([table[list(p.encode())].sum(0) for p in prompts])  # noqa: E731
    forms = [lambda name: f"a photo of a {name.upper()}.", "{} in the snow"]
    rows = [unit(unit(embed([f"a photo of a {name.upper()}."])[0])
                 + unit(embed([f"{name} in the snow"])[0])) for name in NAMES]  # fmt: skip
    close(embed_classes(embed, NAMES, forms), torch.stack(rows))


# The models that it comes from.


@pytest.mark.parametrize("source", SOURCES)
def test_logits_are_those_of_the_model_itself(source):
    model, classifier = SOURCES[source]()
    pixels = torch.randn(3, 3, TINY_SIZE, TINY_SIZE, dtype=torch.float64)
    if source == "transformers":
        encode = lambda p: pooled(model.get_text_features(**spell(p)))  # noqa: E731
        embeddings = pooled(model.get_image_features(pixel_values=pixels))
        # For one template the model's own forward says the same.
        one = ZeroShotClassifier.from_transformers(model, spell, NAMES, TEMPLATES[:1])
        prompts = [TEMPLATES[0].replace("{}", name) for name in NAMES]
        whole = model(pixel_values=pixels, **spell(prompts))
        close(one(pixels), whole.logits_per_image, atol=1e-9)
    else:
        encode = lambda p: model.encode_text(spell_77(p))  # noqa: E731
        embeddings = model.encode_image(pixels)
    classes = literal_classes(encode, NAMES, TEMPLATES).detach()
    close(classifier.class_embeddings, classes)
    expected = math.exp(model.logit_scale.item()) * unit(embeddings) @ classes.T
    close(classifier(pixels), expected)
    assert expected.std(1).min() > 1e-3
    assert expected.std(0).max() > 1e-3


@pytest.mark.parametrize("source", SOURCES)
def test_the_text_side_runs_once_in_eval_mode_and_the_model_stays_as_it_was(source):
    model, _ = SOURCES[source]()
    make = {"transformers": ZeroShotClassifier.from_transformers,
            "open_clip": ZeroShotClassifier.from_open_clip}[source]  # fmt: skip
    tokenizer = {"transformers": spell, "open_clip": spell_77}[source]
    model.train()
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    calls = []
    text = model.text_model if source == "transformers" else model.transformer
    text.register_forward_hook(lambda module, *_: calls.append(module.training))
    classifier = make(model, tokenizer, NAMES, TEMPLATES)
    assert calls == [False]
    assert [module.training for module in model.modules()] == modes
    classifier(torch.randn(2, 3, TINY_SIZE, TINY_SIZE, dtype=torch.float64)).sum().backward()
    assert calls == [False]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    # The image side alone is registered, and shared.
    own = {id(p) for p in classifier.parameters()}
    assert own < {id(p) for p in model.parameters()}
    assert not own & {id(p) for p in text.parameters()}
    assert all(p.grad is not None for n, p in classifier.named_parameters() if "embedding" in n)


def test_older_versions_of_transformers_return_tensors():
    model, classifier = from_tiny_transformers()
    new = model.get_text_features
    model.get_text_features = lambda **tokens: pooled(new(**tokens))
    older = ZeroShotClassifier.from_transformers(model, spell, NAMES, TEMPLATES)
    assert torch.equal(older.class_embeddings, classifier.class_embeddings)


def word_tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[PAD]": 0, "[UNK]": 2, "[EOS]": END, "a": 3, "photo": 4, "of": 5, "cat": 6, "dog": 7}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A [EOS]", special_tokens=[("[EOS]", END)]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]")


def test_a_tokenizer_of_transformers():
    model = doubled(tiny_model())
    classifier = ZeroShotClassifier.from_transformers(
        model, word_tokenizer(), ["cat", "photo of a dog"], ["a photo of a {}", "a {}"]
    )
    ids = [[3, 4, 5, 3, 6, END], [3, 6, END], [3, 4, 5, 3, 4, 5, 3, 7, END], [3, 4, 5, 3, 7, END]]
    rows = [unit(pooled(model.get_text_features(torch.tensor([row])))[0]) for row in ids]
    close(classifier.class_embeddings, unit(torch.stack(rows).view(2, 2, -1).mean(1)).detach())


def classify_pictures(clip):
    classifier = clip.classify(["cat", "dog"], ["a photo of a {}", "a {}"])
    pictures = random_pictures(3, clip.preprocess)
    # As the workers of a DataLoader get them.
    pictures = pickle.loads(pickle.dumps(pictures))
    images = torch.stack([pictures[i][0] for i in range(3)])
    assert images.shape == (3, 3, TINY_SIZE, TINY_SIZE)
    assert images.std() > 0.1
    assert classifier(images).shape == (3, 2)
    assert_invariant(symmetrized(classifier, D4), images.double(), D4)


def test_loading_from_the_hub_of_transformers(tmp_path):
    """What from_pretrained reads, from a folder in the place of the hub."""
    tiny_model().save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    size = {"height": TINY_SIZE, "width": TINY_SIZE}
    transformers.CLIPImageProcessor(
        size={"shortest_edge": TINY_SIZE}, crop_size=size
    ).save_pretrained(tmp_path)
    classify_pictures(load_transformers(str(tmp_path)))


def test_loading_from_open_clip(tmp_path):
    """What open_clip makes and its own tokenizer, with a tiny configuration and random weights."""
    open_clip = pytest.importorskip("open_clip", reason="install equitune[clip]")
    vision = {"layers": 1, "width": 16, "head_width": 8, "image_size": TINY_SIZE, "patch_size": 4}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "tiny-for-tests.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-for-tests.json")
    classify_pictures(load_open_clip("tiny-for-tests", None))


# Symmetrised.


@pytest.mark.parametrize("action", [C4, D4], ids=["c4", "d4"])
@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("source", ["uneven", *SOURCES])
def test_logits_are_invariant(source, wrap, action, classifier, images):
    if source != "uneven":
        _, classifier = SOURCES[source]()
        images = torch.randn(3, 3, TINY_SIZE, TINY_SIZE, dtype=torch.float64)
    assert_invariant(symmetrized(classifier, action, wrap), images, action)
    with pytest.raises(AssertionError, match="not invariant"):
        assert_invariant(classifier, images, action)


@pytest.mark.parametrize("action", [C4, D4], ids=["c4", "d4"])
def test_equitune_is_the_literal_formula(action, classifier, images):
    """The mean of unit embeddings, of unit length again, times the classes."""
    logits = symmetrized(classifier, action)(images)
    raw = classifier.encoder.encoder
    for i, image in enumerate(images):
        copies = [raw(action.transform(image[None], g))[0] for g in action.group.elements]
        mean = sum(unit(e) for e in copies) / action.group.order
        close(logits[i], 7.0 * classifier.class_embeddings @ unit(mean))
        # A mean of raw embeddings would be ruled by the longest, and is something else.
        other = 7.0 * classifier.class_embeddings @ unit(sum(copies))
        assert (logits[i] - other).abs().max() > 1e-3


@pytest.mark.parametrize("action", [C4, D4], ids=["c4", "d4"])
def test_equizero_is_a_loop_over_the_elements(action, classifier, images):
    model = symmetrized(classifier, action, "EquiZero")
    logits, explanation = model(images), model.explain(images)
    classes = classifier.class_embeddings
    by_class = []
    for i, image in enumerate(images):
        best, best_similarity, best_element = None, -math.inf, None
        for g in action.group.elements:
            cosines = classes @ unit(classifier.encoder(action.transform(image[None], g))[0])
            close(explanation.scores[g, i], cosines.max())
            if cosines.max() > best_similarity:
                best, best_similarity, best_element = cosines, cosines.max(), g
        close(logits[i], 7.0 * best)
        assert explanation.elements[i] == best_element
        assert explanation.weights[best_element, i] == 1
        by_class.append(torch.stack([
            7.0 * classes @ unit(classifier.encoder(action.transform(image[None], g))[0])
            for g in action.group.elements
        ]).amax(0))  # fmt: skip
    # One element per image: the best copy of each class for itself would be something else.
    assert (logits - torch.stack(by_class)).abs().max() > 1e-2
    assert torch.equal(explanation.output, logits)


@pytest.mark.parametrize("action", [C4, D4], ids=["c4", "d4"])
def test_lambda_equitune_is_the_literal_formula(action, classifier, images):
    model = symmetrized(classifier, action, "LambdaEquiTune")
    logits, explanation = model(images), model.explain(images)
    net = model.weighting.weight_net
    for i, image in enumerate(images):
        copies = [unit(classifier.encoder(action.transform(image[None], g))[0])
                  for g in action.group.elements]  # fmt: skip
        lambdas = [net(copy[None])[0, 0].exp() for copy in copies]
        total = sum(lambdas)
        mean = sum(w / total * e for w, e in zip(lambdas, copies, strict=True))
        close(logits[i], 7.0 * classifier.class_embeddings @ unit(mean))
        close(explanation.weights[:, i], torch.stack(lambdas) / total)
    assert explanation.weights.std(0).max() > 1e-3


def test_explanations_are_of_each_image(classifier, images):
    explanation = symmetrized(classifier, C4).explain(images)
    assert explanation.output.shape == (7, 4)
    assert explanation.weights.shape == (4, 7)
    assert (explanation.weights == 0.25).all()


def test_the_loss_is_the_similarity_and_can_be_any_length(classifier):
    stack = torch.randn(4, 3, 5, dtype=torch.float64)
    cosines = unit(stack) @ classifier.class_embeddings.T
    loss = classifier.image_text_loss
    close(loss(stack), negative_similarity(cosines))
    close(loss(stack), -cosines.amax(-1))
    close(loss(30 * stack), loss(stack))
    close(ImageTextLoss(3 * classifier.class_embeddings)(stack), loss(stack))


def test_the_encoder_and_the_classes_are_shared(classifier, images):
    model = symmetrized(classifier, C4)
    assert {id(p) for p in model.parameters()} == {id(p) for p in classifier.parameters()}
    model.float()
    assert classifier.class_embeddings.dtype == torch.float32
    assert model.backbone is classifier
    assert classifier(images.float()).dtype == torch.float32
    with torch.no_grad():
        classifier.encoder.encoder.linear.bias.zero_()
    assert not model.backbone.encoder.encoder.linear.bias.any()
    # What was symmetrised once can be symmetrised again.
    inner = classifier.with_encoder(EquiTune(classifier.encoder, C4)).double()
    close(inner(images), symmetrized(classifier, C4)(images))
    assert inner.image_text_loss is classifier.image_text_loss
    assert_invariant(symmetrized(inner, D4).double(), images, D4)
    # What is of unit length already is not wrapped twice.
    plain = from_tiny_transformers()[1]
    assert plain.with_encoder(plain.encoder).encoder is plain.encoder


def test_the_classes_belong_to_the_names_and_not_to_the_checkpoint(classifier, images):
    model = symmetrized(classifier, C4, "LambdaEquiTune")
    parts = ("backbone.encoder.", "weighting.weight_net.")
    assert all(key.startswith(parts) for key in model.state_dict())
    assert not any("class" in key for key in model.state_dict())
    other = ZeroShotClassifier(Uneven(), torch.randn(2, 5), ["ant", "fly"]).double()
    before = other.class_embeddings.clone()
    other.load_state_dict(classifier.state_dict())
    assert torch.equal(other.class_embeddings, before)
    close(other(images), 100 * unit(classifier.encoder(images)) @ before.T)


@pytest.mark.parametrize("wrap", WRAPS)
def test_copies_and_pickles(wrap, classifier, images):
    model = symmetrized(classifier, C4, wrap)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(images), model(images))
        other.float()
        assert model.backbone.class_embeddings.dtype == torch.float64
        assert other(images.float()).dtype == torch.float32


def test_it_compiles_to_one_graph(classifier, images):
    for wrap in ("EquiTune", "EquiZero"):
        model = symmetrized(classifier, C4, wrap)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        close(compiled(images), model(images))


def test_similarities_are_float32_also_in_half_precision(classifier, images):
    model = symmetrized(classifier, C4).float()
    expected, loss = model(images.float()), model.backbone.image_text_loss
    embeddings = torch.randn(9, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(images.float()).dtype == torch.float32
        # In bfloat16, logits near 100 would be multiples of a half.
        inside = loss.similarities(embeddings)
    assert torch.equal(inside, loss.similarities(embeddings))
    half = copy.deepcopy(model).bfloat16()
    assert half.backbone.encoder(images.bfloat16()).dtype == torch.bfloat16
    assert half(images.bfloat16()).dtype == torch.float32
    close(half(images.bfloat16()), expected, atol=0.3)


def test_an_encoder_that_says_nothing_gives_no_nan(images):
    for dtype in (torch.float16, torch.float64):
        silent = nn.Sequential(nn.Flatten(), nn.Linear(108, 5)).to(dtype)
        for parameter in silent.parameters():
            nn.init.zeros_(parameter)
        model = ZeroShotClassifier(silent, torch.eye(5), NAMES)
        assert not EquiTune(model, C4, submodule="encoder")(images.to(dtype)).any()


WEIGHTINGS = {
    "Uniform": lambda loss: Uniform(),
    "Learned": lambda loss: Learned(MlpWeightNet(5), "output"),
    "Best": Best,
    "the best two": lambda loss: TopK(loss, 2),
}


@pytest.mark.parametrize("which", WEIGHTINGS)
def test_any_weighting_explains_freezes_and_trains(which, classifier, images):
    weighting = WEIGHTINGS[which](classifier.image_text_loss)
    model = Symmetrized(classifier, D4, weighting=weighting, submodule="encoder").double().eval()
    assert_invariant(model, images, D4)
    assert_matches_formula(model, images)
    explanation = model.explain(images)
    close(explanation.output, model(images))
    close(explanation.weights.sum(0), torch.ones(7).double())
    # The mean of unit embeddings by these weights, of unit length again.
    orbit = torch.stack([classifier.encoder(D4.transform(images, g)) for g in range(8)])
    mean = (explanation.weights[..., None] * orbit).sum(0)
    close(model(images), 7.0 * unit(mean) @ classifier.class_embeddings.T)

    learned = backbone_phase(model) if which != "Learned" else weights_phase(model)
    assert {id(p) for p in learned} == {
        id(p) for p in (model.backbone if which != "Learned" else model.weighting).parameters()
    }
    F.cross_entropy(model(images), torch.arange(7) % 4).backward()
    assert all(p.grad is not None for p in learned)
    assert sum(bool(p.grad.any()) for p in learned) > len(learned) / 2
    model.freeze_backbone().train()
    assert not model.backbone.training
    assert not any(p.requires_grad for p in model.backbone.parameters())
    model.unfreeze_backbone()
    assert all(p.requires_grad for p in model.backbone.parameters())


# Trained, in the phases of the paper.


def test_lambda_learns_and_then_reads_frozen_features(classifier, images):
    plain = copy.deepcopy(classifier)
    model = symmetrized(classifier, C4, "LambdaEquiTune")
    optimizer = torch.optim.SGD(weights_phase(model), lr=0.3)
    first = None
    for _ in range(40):
        loss = upright_loss(model.explain(images).scores)
        first = first if first is not None else loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.8 * first
    assert torch.equal(classifier(images), plain(images))
    learned = model.eval().explain(images).weights
    model = with_frozen_features(model)
    optimizer = torch.optim.SGD(backbone_phase(model), lr=0.1)
    F.cross_entropy(model(images), torch.arange(7) % 4).backward()
    optimizer.step()
    assert not torch.equal(classifier(images), plain(images))
    close(model.explain(images).weights, learned)
    assert_invariant(model.eval(), images, C4)


@pytest.mark.parametrize("wrap", ["EquiTune", "EquiZero"])
def test_the_backbone_learns_through_the_wrapper(wrap, classifier, images):
    model = symmetrized(classifier, C4, wrap)
    optimizer = torch.optim.SGD(backbone_phase(model), lr=0.05)
    labels = torch.arange(7) % 4
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(model(images), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert min(losses) < losses[0] - 0.1
    assert_equivariant(model, images, C4)


# Bad input.


def embed_one(prompts):
    return torch.ones(len(prompts), 2)


@pytest.mark.parametrize(("names", "templates", "error", "message"), [
    ([], ["{}"], ValueError, "`class_names` must have 1 or more entries"),
    (["cat"], [], ValueError, "`templates` must have 1 or more entries"),
    ("cat", ["{}"], TypeError, r"`class_names` must be a sequence, got 'cat'; .* \['cat'\]"),
    (["cat"], "a {}", TypeError, "`templates` must be a sequence, got 'a {}'"),
    (["cat", " "], ["{}"], ValueError, r"`class_names\[1\]` must say something, got ' '"),
    (["cat", 3], ["{}"], TypeError, r"`class_names\[1\]` must be a string, got 3"),
    (["cat"], ["a {}", "a photo"], ValueError,
     r"`templates\[1\]` must have a place for .* got 'a photo'"),
    (3, ["{}"], TypeError, "`class_names` must be a sequence, got 3; use a list"),
    (["cat"], None, TypeError, "`templates` must be a sequence, got None; use a list"),
    (["cat"], [3], TypeError, r"`templates\[0\]` .* got 3; use a string or a function"),
    (["cat"], [lambda name: 3], TypeError, r"`templates\[0\]\('cat'\)` must be a string, got 3"),
    (["cat"], [lambda name: " "], ValueError, r"`templates\[0\]\('cat'\)` must say something"),
    (["cat", "dog"], ["{}", lambda name: "a photo"], ValueError,
     r"`templates\[1\]` must put the name into the prompt, got 'a photo' for all names"),
    (["cat"], ["a {name}"], ValueError, "use {}, such as in 'a photo of a {}.'"),
])  # fmt: skip
def test_bad_names_and_templates(names, templates, error, message):
    with pytest.raises(error, match=message):
        embed_classes(embed_one, names, templates)


@pytest.mark.parametrize(("embed", "error", "message"), [
    (lambda p: torch.ones(1, 2), ValueError,
     r"must be \(2, D\), one embedding per prompt, got .* \(1, 2\)"),
    (lambda p: torch.ones(2), ValueError, r"`embed\(prompts\)` must be \(2, D\), .* shape \(2,\)"),
    (lambda p: torch.ones(2, 2).long(), TypeError,
     r"floating-point tensor, got .* torch\.int64 .* per prompt"),
    (lambda p: p, TypeError, r"`embed\(prompts\)` must be .* got a list; use .* \(2, D\)"),
    (lambda p: torch.tensor([[1.0, 0], [0, 0]]), ValueError,
     "class .dog.` must have a direction, got norm 0.0"),
    (lambda p: torch.tensor([[1.0, 0], [0, math.nan]]), ValueError,
     "class .dog.` must have a direction, got norm nan"),
])  # fmt: skip
def test_bad_text_encoders(embed, error, message):
    with pytest.raises(error, match=message):
        embed_classes(embed, ["cat", "dog"], ["{}"])


def test_bad_functions():
    with pytest.raises(TypeError, match="`embed` must be a function, got None"):
        embed_classes(None, ["cat"])
    with pytest.raises(TypeError, match="`progress` must be a function, got 3"):
        embed_classes(embed_one, ["cat"], progress=3)
    with pytest.raises(TypeError, match="`embeddings` must be a tensor"):
        ImageTextLoss(torch.eye(2)).similarities([1, 2])
    with pytest.raises(TypeError, match="`stack` must be a tensor"):
        ImageTextLoss(torch.eye(2))(None)


@pytest.mark.parametrize("batch_size", [0, 2.5, True])
def test_bad_batch_sizes(batch_size):
    with pytest.raises(ValueError, match="`batch_size` must be"):
        embed_classes(embed_one, ["cat"], ["{}"], batch_size=batch_size)


EYE = torch.eye(2)


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ((Uneven(), EYE, ["cat"]), ValueError, "`class_names` must hold 2 names, .* got 1 names"),
    ((Uneven(), EYE, []), ValueError, "`class_names` must have 1 or more"),
    ((len, EYE, ["cat", "dog"]), TypeError, "`encoder` must be a torch.nn.Module, got a builtin"),
    ((Uneven(), EYE.tolist(), ["cat", "dog"]), TypeError, "`class_embeddings` must .* got a list"),
    ((Uneven(), EYE.int(), ["cat", "dog"]), TypeError, "of dtype torch.int32"),
    ((Uneven(), EYE[0], ["cat", "dog"]), ValueError, r"be \(classes, D\), .* shape \(2,\)"),
    ((Uneven(), EYE[:0], ["cat"]), ValueError, r"got .* shape \(0, 2\)"),
    ((Uneven(), 0 * EYE, ["cat", "dog"]), ValueError, r"`class_embeddings\[0\]` .* got norm 0.0"),
])  # fmt: skip
def test_bad_classifiers(arguments, error, message):
    with pytest.raises(error, match=message):
        ZeroShotClassifier(*arguments)


@pytest.mark.parametrize("scale", [0, -1, math.nan, math.inf])
def test_bad_scales(scale):
    with pytest.raises(ValueError, match="`logit_scale` must be"):
        ZeroShotClassifier(Uneven(), EYE, ["cat", "dog"], logit_scale=scale)


@pytest.mark.parametrize("bias", [math.nan, -math.inf])
def test_bad_biases(bias):
    with pytest.raises(ValueError, match="`logit_bias` must be"):
        ZeroShotClassifier(Uneven(), EYE, ["cat", "dog"], logit_bias=bias)
    with pytest.raises(TypeError, match="`logit_bias` must be a number, got None"):
        ZeroShotClassifier(Uneven(), EYE, ["cat", "dog"], logit_bias=None)
    with pytest.raises(TypeError, match="`logit_scale` must be a number, got 'high'"):
        ZeroShotClassifier(Uneven(), EYE, ["cat", "dog"], logit_scale="high")


@pytest.mark.parametrize("wrap", [None, "EquiTune"])
def test_bad_images(wrap, classifier, images):
    model = classifier if wrap is None else symmetrized(classifier, C4, wrap)
    for call in (model, *([model.explain] if wrap else [])):
        with pytest.raises(ValueError, match=r"got shape \(\d+, 6, 6\).*image.unsqueeze\(0\)"):
            call(images[0])
        with pytest.raises(TypeError, match=r"`images` .* got a tensor of dtype torch\.uint8"):
            call(images.byte())
        with pytest.raises(TypeError, match=r"tensor.* got a list"):
            call([images])


@pytest.mark.parametrize(("encoder", "error", "message"), [
    (lambda x: x.flatten(1), ValueError,
     r"`embeddings` must be \(\.\.\., 5\), .* \(7, 108\)"),
    (lambda x: x, ValueError, r"must be \(7, D\), one embedding per image, .* \(7, 3, 6, 6\)"),
    (lambda x: x.flatten(1)[:3], ValueError, r"must be \(7, D\), .* shape \(3, 108\)"),
    (lambda x: (x,), TypeError, r"`encoder\(images\)` must be .* got a tuple"),
    (lambda x: x.flatten(1).long(), TypeError, "got a tensor of dtype torch.int64"),
])  # fmt: skip
@pytest.mark.parametrize("wrapped", [False, True])
def test_bad_encoders(encoder, error, message, wrapped, classifier, images):
    module = nn.Module()
    module.forward = encoder
    with pytest.raises(error, match=message):
        classifier.with_encoder(UnitEmbeddings(module) if wrapped else module)(images)


def test_bad_stacks_of_the_loss(classifier):
    with pytest.raises(ValueError, match=r"be \(\|G\|, B, D\), .* shape \(3, 5\)"):
        classifier.image_text_loss(torch.rand(3, 5))
    with pytest.raises(ValueError, match=r"be \(\.\.\., 5\), as wide as .* \(4, 3, 6\)"):
        classifier.image_text_loss(torch.rand(4, 3, 6))


def test_bad_wraps(classifier, images):
    with pytest.raises(TypeError, match=r"`encoder` must be .* got a tensor"):
        classifier.with_encoder(images)
    regular = classifier.with_encoder(RegularFeatures(classifier.encoder, C4))
    with pytest.raises(ValueError, match=r"must be \(7, D\), .* shape \(7, 4, 5\)"):
        regular(images)


def test_bad_models():
    model = tiny_model()
    make = ZeroShotClassifier.from_transformers
    with pytest.raises(TypeError, match=r"a Linear without \['vision_model', .*'logit_scale'\]"):
        make(nn.Linear(2, 2), spell, NAMES)
    with pytest.raises(TypeError, match="without \\['visual', 'encode_text'\\]; use a model of op"):
        ZeroShotClassifier.from_open_clip(model, spell, NAMES)
    with pytest.raises(TypeError, match=r"a processor of images and texts; .* processor.tokenizer"):
        make(model, SimpleNamespace(image_processor=None), NAMES)
    with pytest.raises(TypeError, match="`tokenizer` must return input_ids, got a list"):
        make(model, lambda prompts, **_: prompts, NAMES)
    with pytest.raises(
        ValueError, match=r"77 tokens or fewer, .* got 97 tokens, such as for 'x{90}"
    ):
        make(model, spell, ["cat", "x" * 90], ["{} here"])
    model.get_text_features = lambda **_: (1, 2)
    with pytest.raises(TypeError, match=r"`embed\(prompts\)` must be .* got a tuple"):
        make(model, spell, NAMES)


def test_a_bad_tokenizer_of_open_clip():
    model, _ = from_tiny_open_clip()
    with pytest.raises(TypeError, match=r"got a dict; use open_clip\.get_tokenizer"):
        ZeroShotClassifier.from_open_clip(model, spell, NAMES)


# The benchmark, in small.


def test_the_benchmark_runs_and_goes_on(tmp_path, capsys, monkeypatch):
    words = ["--tiny", "--output", str(tmp_path)]
    kept = {path: path.read_bytes() for path in record.RESULTS.glob("*")}
    clip_zero_shot.main(words)
    assert {path: path.read_bytes() for path in record.RESULTS.glob("*")} == kept
    path = tmp_path / "clip_zero_shot.json"
    rows = record.load(str(path.with_suffix("")))["rows"]
    assert [name.removeprefix("tiny, random, c4, ") for name in rows] == [
        "zero-shot, plain", "zero-shot, EquiTune", "zero-shot, EquiZero",
        "zero-shot, LambdaEquiTune, seed 0", "2 steps, EquiTune, seed 0",
        "4 steps, EquiTune, seed 0", "2 steps, EquiZero, seed 0", "4 steps, EquiZero, seed 0",
        "2 steps, LambdaEquiTune, seed 0", "4 steps, LambdaEquiTune, seed 0",
    ]  # fmt: skip
    for name, row in rows.items():
        plain = name.endswith("plain")
        assert (row["changed"] == 0) or plain, name
        assert plain or sum(row["weights"]) == pytest.approx(1, abs=1e-5)
    assert rows["tiny, random, c4, zero-shot, plain"]["changed"] > 0
    assert str(tmp_path) not in path.read_text()
    assert "zero-shot, EquiZero" in capsys.readouterr().out

    # What is there is kept, what was made with other settings is not.
    done = []
    measured = clip_zero_shot.measured
    monkeypatch.setattr(
        clip_zero_shot, "measured", lambda *a, **k: done.append(a[-1]) or measured(*a, **k)
    )
    clip_zero_shot.main(words)
    assert done == []
    monkeypatch.setitem(clip_zero_shot.TINY, "lambda_steps", 2)
    clip_zero_shot.main(words)
    assert len(done) == 3
    assert all("LambdaEquiTune" in name for name in done)


def test_the_benchmark_counts_what_changes():
    class TopLeft(nn.Module):
        def forward(self, images):
            return torch.stack([images[:, 0, 0, 0], 1 - images[:, 0, 0, 0]], dim=1)

    bright = torch.zeros(3, 3, 4, 4)
    bright[0, :, 0, 0] = bright[1, :, 3, 3] = 1
    model = ZeroShotClassifier(TopLeft(), EYE, ["bright", "dark"])
    loader = [(bright[:2], torch.tensor([0, 1])), (bright[2:], torch.tensor([0]))]
    row = clip_zero_shot.measured(model, loader, C4, torch.device("cpu"))
    assert row == {"upright": 2 / 3, "moved": pytest.approx(1 / 3), "changed": 2 / 3}


@pytest.mark.parametrize(("words", "message"), [
    (["--tiny", "--output", str(record.RESULTS)], "--tiny is a test"),
    (["--evaluate-every", "5000"], "give an --evaluate-every from 1"),
    (["--group", "c5"], "invalid choice"),
])  # fmt: skip
def test_bad_options_of_the_benchmark(words, message, capsys):
    with pytest.raises(SystemExit):
        clip_zero_shot.parse(words)
    assert message in capsys.readouterr().err


def test_the_benchmark_wants_a_batch(monkeypatch, tmp_path):
    monkeypatch.setitem(clip_zero_shot.TINY, "train_images", 3)
    with pytest.raises(SystemExit, match="3 pictures to learn from make no batch"):
        clip_zero_shot.main(["--tiny", "--output", str(tmp_path)])
