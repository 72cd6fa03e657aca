"""Boxes, keypoints, labels and detections that move with their images."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn

from cases import AnyWeightNet, ConvNet
from equitune import (
    Action,
    Best,
    Canonical,
    Canonicalize,
    Drop,
    EquiTune,
    EquiZero,
    ImageAction,
    LambdaEquiTune,
    Learned,
    PermutationAction,
    ProductAction,
    Symmetrized,
    TreeAction,
    TrivialAction,
    Uniform,
    VectorFieldAction,
    c4,
    cyclic,
    d4,
    symmetric,
)
from equitune.testing import (
    assert_action,
    assert_equivariant,
    assert_matches_formula,
    equivariance_report,
)
from equitune.vision import (
    AbsoluteCoordinates,
    BoxAction,
    KeypointAction,
    NormalizedCoordinates,
    PaddedDetections,
    check_coordinates,
    label_swaps,
)
from test_weightings import TopK

# Random networks return boxes of any size, which the assertions warn of.
UNTRAINED = pytest.mark.filterwarnings("ignore:the output of fn must hold")
D4, C4 = ImageAction(d4()), ImageAction(c4())
FORMATS = ("xyxy", "xywh", "cxcywh")
GROUPS = {
    "c4": C4,
    "d4": D4,
    "horizontal flip": ImageAction.horizontal_flip(),
    "vertical flip": ImageAction.vertical_flip(),
}


def painted(box, height, width):
    """An image with a filled box, whose corners are whole numbers."""
    image = torch.zeros(height, width)
    x1, y1, x2, y2 = map(int, box)
    image[y1:y2, x1:x2] = 1
    return image


def box_of(image):
    rows, columns = image.amax(1).nonzero(), image.amax(0).nonzero()
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


@pytest.mark.parametrize("box_format", FORMATS)
@pytest.mark.parametrize("images", GROUPS.values(), ids=GROUPS)
def test_boxes_move_as_painted_ones_do(images, box_format):
    ops = pytest.importorskip("torchvision.ops", reason="torchvision is not installed")
    box, (height, width) = torch.tensor([1.0, 2.0, 4.0, 3.0]), (6, 8)
    if images in (C4, D4):
        height = width = 8
    absolute = BoxAction(images, box_format, (height, width))
    unit = torch.tensor([width, height, width, height])
    for g in images.group.elements:
        expected = box_of(images.transform(painted(box, height, width)[None], g)[0])
        moved = absolute.transform(ops.box_convert(box[None], "xyxy", box_format), g)
        assert ops.box_convert(moved, box_format, "xyxy")[0].tolist() == expected
        relative = BoxAction(images, box_format)
        moved = relative.transform(ops.box_convert(box[None] / unit, "xyxy", box_format), g)
        moved = ops.box_convert(moved, box_format, "xyxy") * unit
        torch.testing.assert_close(moved[0], torch.tensor(expected).float())


def test_relative_boxes_move_in_images_that_are_not_square():
    box, height, width = (1, 2, 4, 3), 6, 9
    action = BoxAction(D4)
    relative = torch.tensor([box]) / torch.tensor([width, height, width, height])
    for g in D4.group.elements:
        turned = D4.transform(painted(box, height, width)[None], g)[0]
        rows, columns = turned.shape
        moved = action.transform(relative, g) * torch.tensor([columns, rows, columns, rows])
        assert moved[0].round().tolist() == box_of(turned)


@pytest.mark.parametrize("images", GROUPS.values(), ids=GROUPS)
def test_keypoints_move_as_marked_pixels_do(images):
    size = 7
    for x, y in itertools.product((0, 2, 6), (1, 5)):
        marked = torch.zeros(1, size, size)
        marked[0, y, x] = 1
        # Indices of pixels: the largest is the size less 1.
        action = KeypointAction(images, 1, image_size=(size - 1, size - 1))
        for g in images.group.elements:
            row, column = images.transform(marked, g)[0].nonzero()[0].tolist()
            point = action.transform(torch.tensor([[[x, y]]]).float(), g)
            assert point[0, 0].tolist() == [column, row]


ACTIONS = {
    **{f"boxes {f}, {name}": (BoxAction(images, f), (5, 4))
       for f in FORMATS for name, images in GROUPS.items()},
    "boxes in pixels": (BoxAction(D4, "xywh", (48, 48)), (2, 5, 4)),
    "boxes in pixels, flipped": (BoxAction(GROUPS["vertical flip"], "xyxy", (32, 48)), (4,)),
    "keypoints": (KeypointAction(D4, 5, [(1, 2), (3, 4)]), (5, 2)),
    "keypoints with visibility": (KeypointAction(D4, 3, [(0, 2)], (48, 48)), (6, 3, 3)),
    "label swaps": (label_swaps(D4, 4, [(1, 3)]), (4,)),
    "maps with label swaps": (
        ProductAction.simultaneous(D4, label_swaps(D4, 3, [(1, 2)], dim=-3)), (3, 6, 6)),
    "tokens": (D4.on_tokens(3, 3), (10, 2)),
}  # fmt: skip


@pytest.mark.parametrize(("action", "shape"), ACTIONS.values(), ids=ACTIONS)
def test_they_are_actions(action, shape):
    x = torch.rand(9, *shape, dtype=torch.float64)
    assert_action(action, x)
    assert pickle.loads(pickle.dumps(action)) == action == copy.deepcopy(action)
    embedding = action.group.subgroup([action.group.order - 1])
    restricted = action.restrict(embedding)
    assert_action(restricted, x)
    for h, g in enumerate(embedding.elements):
        assert torch.equal(restricted.transform(x, h), action.transform(x, g))


def test_the_check_sees_a_turn_the_wrong_way_round():
    """The inverse of every element is an action of an abelian group, but not of d4."""

    class Backwards(Action):
        def __init__(self):
            self._boxes = BoxAction(D4)
            self.group = self._boxes.group

        def transform(self, x, g):
            return self._boxes.transform(x, self.group.inverse(g))

    with pytest.raises(AssertionError):
        assert_action(Backwards(), torch.rand(9, 4, dtype=torch.float64))


class BoxNet(nn.Module):
    """A random network that returns boxes, or keypoints, relative to its images."""

    def __init__(self, *shape):
        super().__init__()
        self.net, self.shape = ConvNet(3, torch.Size(shape).numel(), dense=False), shape

    def forward(self, images):
        return self.net(images).unflatten(1, self.shape)


@UNTRAINED
@pytest.mark.parametrize("size", [(8, 8), (6, 9)], ids=str)
@pytest.mark.parametrize(("action", "shape"), [
    (BoxAction(D4), (5, 4)),
    (BoxAction(D4, "cxcywh"), (4,)),
    (BoxAction(D4, "xywh"), (2, 4)),
    (KeypointAction(D4, 5, [(1, 2), (3, 4)]), (5, 2)),
    (KeypointAction(D4, 3, [(0, 2)]), (3, 3)),
    (label_swaps(D4, 4, [(1, 3)]), (4,)),
], ids=str)  # fmt: skip
def test_wrappers_move_coordinates(action, shape, size):
    x = torch.randn(9, 3, *size, dtype=torch.float64)
    backbone = BoxNet(*shape).double()
    for model in (
        EquiTune(backbone, D4, action),
        EquiZero(backbone, D4, action, proxy_loss=lambda y: y.flatten(2)[:, :, 0]),
        LambdaEquiTune(backbone, D4, action, weight_net=AnyWeightNet().double()),
        Canonicalize(backbone, D4, action, weight_net=AnyWeightNet().double()),
    ):
        assert_equivariant(model, x, D4, action)
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(backbone, x, D4, action)
    # Without the exchange of labels, or with another one, it is another symmetry.
    if isinstance(action, KeypointAction):
        other = KeypointAction(D4, shape[0])
        with pytest.raises(AssertionError, match="not equivariant"):
            assert_equivariant(EquiTune(backbone, D4, action), x, D4, other)


def test_maps_whose_labels_are_exchanged():
    action = ProductAction.simultaneous(D4, label_swaps(D4, 4, [(1, 3)], dim=-3))
    for size in ((6, 6), (5, 7)):
        x = torch.randn(9, 3, *size, dtype=torch.float64)
        model = EquiTune(ConvNet(3, 4, dense=True).double(), D4, action)
        assert_equivariant(model, x, D4, action)
        with pytest.raises(AssertionError, match="not equivariant"):
            assert_equivariant(model, x, D4, D4)


class InPixels(nn.Module):
    """A random network that returns boxes in pixels, in a dict."""

    def __init__(self):
        super().__init__()
        self.net = BoxNet(3, 4)

    def forward(self, images):
        height, width = images.shape[-2:]
        unit = images.new_tensor([width, height, width, height])
        return {"boxes": self.net(images) * unit, "logits": self.net(images)[..., 0]}


@UNTRAINED
@pytest.mark.parametrize("size", [(8, 8), (6, 9)], ids=str)
def test_boxes_in_pixels_of_any_image(size):
    x = torch.randn(9, 3, *size, dtype=torch.float64)
    network = InPixels().double().eval()
    action = TreeAction({"boxes": BoxAction(D4), "logits": TrivialAction(d4())})
    model = AbsoluteCoordinates(
        EquiTune(NormalizedCoordinates(network, ["boxes"]), D4, action), ["boxes"]
    )
    assert_equivariant(NormalizedCoordinates(model, ["boxes"]), x, D4, action)
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(NormalizedCoordinates(network, ["boxes"]), x, D4, action)
    # In pixels, by the formula.
    expected = 0
    for g in D4.group.elements:
        copies = D4.transform(x, g)
        height, width = copies.shape[-2:]
        unit = torch.tensor([width, height, width, height], dtype=torch.float64)
        inverse = D4.group.inverse(g)
        expected = expected + BoxAction(D4).transform(network(copies)["boxes"] / unit, inverse) / 8
    unit = torch.tensor([size[1], size[0], size[1], size[0]], dtype=torch.float64)
    torch.testing.assert_close(model(x)["boxes"], expected * unit, rtol=1e-12, atol=1e-12)


class Detector(nn.Module):
    """As torchvision's detectors: lists of different lengths, that depend on the image."""

    def forward(self, images):
        found = []
        for image in images:
            _, height, width = image.shape
            # Without any symmetry, so that no two copies are equally good.
            weights = torch.linspace(0, 1, height * width, dtype=image.dtype).view(height, width)
            score = (image.mean(0) * weights).sum()
            count = 1 + int(score.abs() * 1000) % 4
            boxes = torch.rand(
                count, 2, generator=torch.Generator().manual_seed(int(score.abs() * 1e6)),
                dtype=image.dtype,
            ) / 2  # fmt: skip
            unit = torch.tensor([width, height, width, height], dtype=image.dtype)
            found.append({
                "boxes": torch.cat([boxes, boxes + 0.3], dim=1) * unit,
                "labels": torch.arange(count) + 1,
                "scores": torch.linspace(1, 0.5, count, dtype=image.dtype) * score.sigmoid(),
            })  # fmt: skip
        return found


DETECTIONS = TreeAction(
    {"boxes": BoxAction(D4), "labels": TrivialAction(d4()), "scores": TrivialAction(d4())}
)


@pytest.mark.parametrize("size", [(8, 8), (6, 9)], ids=str)
def test_detections_are_selected_as_a_whole(size):
    x = torch.randn(9, 3, *size, dtype=torch.float64)
    padded = PaddedDetections(Detector(), most=6)
    assert padded(x)["boxes"].shape == (9, 6, 4)
    models = (
        EquiZero(padded, D4, DETECTIONS, proxy_loss=lambda found: -found["scores"].amax(-1)),
        Canonicalize(padded, D4, DETECTIONS, weight_net=AnyWeightNet()),
    )
    for model in models:
        assert_equivariant(model, x, D4, DETECTIONS)
        explanation = model.explain(x)
        for sample, g in enumerate(explanation.elements.tolist()):
            alone = padded(D4.transform(x[sample : sample + 1], g))
            back = DETECTIONS.transform(alone, D4.group.inverse(g))
            for name, values in back.items():
                torch.testing.assert_close(explanation.output[name][sample], values[0])
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(padded, x, D4, DETECTIONS)


def test_detections_are_not_averaged():
    padded, x = PaddedDetections(Detector(), most=6), torch.randn(2, 3, 8, 8)
    with pytest.raises(TypeError, match="int64 cannot be averaged"):
        EquiTune(padded, D4, DETECTIONS)(x)
    with pytest.raises(ValueError, match="PaddedDetections"):
        EquiTune(Detector(), D4, DETECTIONS)(x)
    with pytest.raises(TypeError, match="PaddedDetections"):
        EquiTune(Detector(), D4)(x)


def sureness(found):
    return -found["scores"].amax(-1)


@pytest.mark.parametrize("weighting", [
    lambda: Best(sureness), lambda: TopK(sureness, 1),
    lambda: Canonical(AnyWeightNet()), lambda: Learned(AnyWeightNet()),
    lambda: Learned(CumulatedBoxes(), "output"),
], ids=["best", "top 1", "canonical", "learned", "learned of boxes"])  # fmt: skip
def test_detections_with_any_weighting(weighting):
    """Labels are those of the copy with the largest weight, the rest is its mean by the weights."""
    padded, x = PaddedDetections(Detector(), most=6), torch.randn(3, 3, 8, 8).double()
    model = Symmetrized(padded, D4, DETECTIONS, weighting=weighting()).double().eval()
    assert_equivariant(model, x, D4, DETECTIONS)
    assert_matches_formula(model, x)
    explanation = model.explain(x)
    moved = [padded(D4.transform(x, g)) for g in range(8)]
    back = [DETECTIONS.transform(moved[g], D4.group.inverse(g)) for g in range(8)]
    for i, g in enumerate(explanation.elements.tolist()):
        assert torch.equal(explanation.output["labels"][i], moved[g]["labels"][i])
        for name in ("boxes", "scores"):
            mean = sum(w * y[name][i] for w, y in zip(explanation.weights[:, i], back, strict=True))
            torch.testing.assert_close(explanation.output[name][i], mean)


class CumulatedBoxes(nn.Module):
    """A logit that a copy of some boxes gets."""

    def forward(self, boxes):
        return boxes.flatten(1).cumsum(1).sum(1) / 9


@pytest.mark.parametrize("weighting", [Uniform, lambda: TopK(sureness, 2)])
def test_detections_with_equal_weights_leave_the_labels_out(weighting):
    """No copy has the largest weight, whose labels could be taken."""
    padded, x = PaddedDetections(Detector(), most=6), torch.randn(3, 3, 8, 8).double()
    action = TreeAction({"boxes": BoxAction(D4), "labels": Drop(), "scores": TrivialAction(d4())})
    model = Symmetrized(padded, D4, action, weighting=weighting()).eval()
    assert_equivariant(model, x, D4, action)
    assert_matches_formula(model, x)
    with pytest.raises((TypeError, AssertionError), match=r"int64|not equivariant"):
        assert_equivariant(
            Symmetrized(padded, D4, DETECTIONS, weighting=weighting()).eval(), x, D4, DETECTIONS
        )


class Listed(nn.Module):
    """A list of tensors, such as the steps of an optical flow or the levels of a pyramid."""

    def forward(self, images):
        return [images[:, :2], images[:, 1:]]


def test_advice_on_detections_is_not_given_for_other_lists():
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(TypeError, match="TreeAction") as raised:
        EquiTune(Listed(), D4, D4)(x)
    assert "PaddedDetections" not in str(raised.value)
    with pytest.raises(ValueError, match="the field 2") as raised:
        EquiTune(Listed(), D4, TreeAction([D4, D4, D4]))(x)
    assert "PaddedDetections" not in str(raised.value)
    assert len(EquiTune(Listed(), D4, TreeAction([D4, D4]))(x)) == 2


def test_a_symmetric_image_keeps_one_list_of_labels():
    """Ties cannot share decisions: the first of the best copies gives its own."""
    x = torch.ones(2, 3, 8, 8, dtype=torch.float64)
    padded = PaddedDetections(Detector(), most=6)
    expected = padded(x)["labels"]
    zero = EquiZero(padded, D4, DETECTIONS, proxy_loss=lambda found: -found["scores"].amax(-1))
    for model in (zero, Canonicalize(padded, D4, DETECTIONS, weight_net=AnyWeightNet())):
        assert torch.equal(model.explain(x).weights, torch.full((8, 2), 1 / 8))
        assert torch.equal(model(x)["labels"], expected)


def test_torchvision_detectors_and_segmenters():
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    torch.manual_seed(0)
    detector = models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4, detections_per_img=7, score_thresh=0.0
    ).eval()
    x = torch.rand(1, 3, 64, 96)
    model = EquiZero(
        PaddedDetections(detector, most=7), C4, DETECTIONS.restrict(d4().subgroup([1])),
        proxy_loss=lambda found: -found["scores"].amax(-1),
    )  # fmt: skip
    with torch.no_grad():
        upright, turned = model(x), model(x.rot90(1, (2, 3)))
    assert torch.equal(upright["labels"], turned["labels"])
    assert upright["labels"].min() >= 0
    moved = BoxAction(C4).transform(upright["boxes"], 1)
    torch.testing.assert_close(turned["boxes"], moved, rtol=1e-5, atol=1e-6)

    segmenter = models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    )
    segmenter = segmenter.double().eval()
    maps = TreeAction({"out": C4})
    pictures = torch.rand(2, 3, 32, 64, dtype=torch.float64)
    assert_equivariant(EquiTune(segmenter, C4, maps), pictures, C4, maps)
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(segmenter, pictures, C4, maps)
    with pytest.raises(ValueError, match=r"the field 'aux' .* fields .'out'."):
        EquiTune(segmenter, C4, TreeAction({"out": C4, "aux": C4}))(pictures)


class Rows(nn.Module):
    def forward(self, images):
        return torch.zeros(len(images), 5)


class Returns(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, images):
        return self.output


class Odd(nn.Module):
    """A detector whose second list is not like the first."""

    def __init__(self, field):
        super().__init__()
        self.field = field

    def forward(self, images):
        lists = [
            {"boxes": torch.zeros(2, 4), "labels": torch.ones(2).long(), "scores": torch.ones(2)}
            for _ in images
        ]
        if self.field == "boxes":
            lists[1]["boxes"] = torch.zeros(2, 5)
        else:
            del lists[1][self.field]
        return lists


class Found(nn.Module):
    """A detector with one more field, of the values that are given for the images."""

    def __init__(self, *values, name="extra"):
        super().__init__()
        self.values, self.name = values, name

    def forward(self, images):
        return [
            {"boxes": torch.tensor([[0.0, 0, 6, 4]] * 2), "labels": torch.ones(2).long(),
             "scores": image.mean((1, 2))[:2], self.name: self.values[i % len(self.values)]}
            for i, image in enumerate(images)
        ]  # fmt: skip


IMAGES = torch.zeros(2, 3, 4, 6)
RUN_LENGTHS = [{"size": [4, 6], "counts": b"04"}] * 2


def test_other_fields_of_detections():
    kept = PaddedDetections(Found(torch.ones(2, 1, 4, 6) > 0, name="masks"), 3)(IMAGES)
    assert kept["masks"].dtype == torch.bool
    assert kept["masks"].sum((2, 3, 4)).tolist() == [[24, 24, 0]] * 2
    assert PaddedDetections(Found(torch.ones(2, 5)), 3)(IMAGES)["extra"].shape == (2, 3, 5)
    points = torch.tensor([[[3.0, 2.0, 2.0], [0.0, 0.0, 0.0]]] * 2)
    kept = PaddedDetections(Found(points, name="keypoints"), 2)(IMAGES)
    assert kept["keypoints"][0, 0].tolist() == [[0.5, 0.5, 2], [0, 0, 0]]
    assert set(PaddedDetections(Found(None))(IMAGES)) == {"boxes", "labels", "scores"}
    for value in (RUN_LENGTHS, 7, torch.tensor(7), torch.tensor([7]), "a.jpg", None):
        kept = PaddedDetections(Found(value), drop=["extra"])(IMAGES)
        assert set(kept) == {"boxes", "labels", "scores"}


@pytest.mark.parametrize(("values", "error", "said"), [
    ((RUN_LENGTHS,), TypeError, r"\[0\]\['extra'\]` .* got a list; .* drop=\['extra'\]"),
    ((7,), TypeError, r"\[0\]\['extra'\]` must be a tensor, got 7; .* drop=\['extra'\]"),
    (("a.jpg",), TypeError, r"\[0\]\['extra'\]` must be a tensor, got 'a.jpg'"),
    ((torch.zeros(2), None), TypeError, r"\[1\]\['extra'\]` must be a tensor, got None"),
    ((None, torch.zeros(2)), TypeError, r"\[0\]\['extra'\]` must be a tensor, got None"),
    ((torch.tensor(7),), ValueError, r"\[0\]\['extra'\]` .* each of 2 boxes, got shape \(\)"),
    ((torch.tensor([7]),), ValueError, r"'extra'\]` .* got shape \(1,\).*drop=\['extra'\]"),
    ((torch.zeros(2, 3), torch.zeros(2, 4)), ValueError, r"'extra'\]` .* \[\(3,\), \(4,\)\]"),
])  # fmt: skip
def test_fields_that_cannot_be_padded_are_named(values, error, said):
    with pytest.raises(error, match=said):
        PaddedDetections(Found(*values))(IMAGES)


@pytest.mark.parametrize(("name", "value", "error", "said"), [
    ("boxes", None, TypeError, r"\[0\]\['boxes'\]` must be a tensor, got None"),
    ("boxes", [[0, 0, 1, 1]], TypeError, r"\[0\]\['boxes'\]` must be a tensor, got a list"),
    ("labels", None, TypeError, r"\[0\]\['labels'\]` must be a tensor, got None"),
    ("scores", [0.5, 0.5], TypeError, r"\['scores'\]` .* got a list; .* per detection$"),
    ("labels", torch.ones(3).long(), ValueError, "'labels'.* one entry per detection$"),
    ("keypoints", torch.zeros(2, 5, 2), ValueError, r"\[0\]\['keypoints'\]` .* a visibility"),
])  # fmt: skip
def test_needed_fields_that_are_no_tensors(name, value, error, said):
    with pytest.raises(error, match=said):
        # None in all images would be left out, were it another field.
        PaddedDetections(Found(value, name=name))(IMAGES)


class OfBatches(nn.Module):
    """A detector that takes the batch as one tensor."""

    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, images):
        scores = self.net(images).amax((1, 2, 3))
        box = torch.tensor([[0.0, 0.0, 4.0, 2.0]])
        return [{"boxes": box, "labels": torch.ones(1).long(), "scores": s[None]} for s in scores]


def test_detectors_of_batches():
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    with pytest.raises(TypeError) as raised:
        PaddedDetections(OfBatches().double())(x)
    assert "use inputs=torch.clone" in "".join(raised.value.__notes__)
    padded = PaddedDetections(OfBatches().double().eval(), 2, inputs=torch.clone)
    model = EquiZero(padded, D4, DETECTIONS, proxy_loss=lambda found: -found["scores"].amax(-1))
    assert_equivariant(model, x, D4, DETECTIONS)
    assert pickle.loads(pickle.dumps(padded))(x)["boxes"].shape == (5, 2, 4)


class Trained(nn.Module):
    """As detectors do: losses in train mode, detections in eval mode."""

    def forward(self, images, targets=None):
        if self.training:
            return {"loss_classifier": torch.zeros(()), "loss_box_reg": torch.zeros(())}
        return Found(None)(images)


def test_losses_are_no_detections():
    padded = PaddedDetections(Trained())
    with pytest.raises(TypeError, match=r"\['loss_classifier', 'loss_box_reg'\].* call .eval\(\)"):
        padded(IMAGES)
    padded.eval()
    assert padded(IMAGES)["boxes"].shape == (2, 100, 4)
    with pytest.raises(ValueError, match="`targets` must be None"):
        padded(IMAGES, [{}])


def test_a_detector_of_torchvision_in_train_mode():
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    detector = models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=2
    )
    with pytest.raises(AssertionError) as raised:
        PaddedDetections(detector.train())(torch.rand(2, 3, 32, 32))
    assert "call .eval()" in "".join(raised.value.__notes__)


def test_coordinates_of_model_outputs_keep_their_class():
    outputs = pytest.importorskip("transformers.utils", reason="transformers is not installed")

    class Detr(nn.Module):
        def forward(self, images):
            return outputs.ModelOutput(boxes=torch.ones(len(images), 2, 4), score=torch.ones(2))

    found = AbsoluteCoordinates(Detr(), ["boxes"])(torch.zeros(2, 3, 6, 9))
    assert isinstance(found, outputs.ModelOutput)
    assert found.boxes[0, 0].tolist() == found["boxes"][0, 0].tolist() == [9, 6, 9, 6]


def test_keypoints_of_several_colours():
    keypoints = KeypointAction(D4, 3, [(0, 2)])
    rows = PermutationAction(cyclic(3), [(0, 1, 2), (1, 2, 0), (2, 0, 1)], dim=-3)
    assert_action(ProductAction(keypoints, rows), torch.rand(9, 3, 3, 2, dtype=torch.float64))


LABELLED = torch.tensor([[[10.0, 20.0, 2.0], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0]]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("size", [None, (48, 48), (100.3, 100.3)])
def test_keypoints_that_are_not_labelled_stay(dtype, size):
    action = KeypointAction(D4, 3, [(0, 1)], size)
    x = (LABELLED / (1 if size else 48)).to(dtype)
    for g in D4.group.elements:
        moved = action.transform(x, g)
        # It goes with its label, and is 0 there.
        reflected = g >= 4
        assert moved[0, 0 if reflected else 1].tolist() == [0, 0, 0]
        assert moved[0, 1 if reflected else 0, :2].abs().max() > 0
        assert moved[0, 2].tolist()[2] == 0
        torch.testing.assert_close(action.transform(moved, D4.group.inverse(g)), x)
    # What has a place moves, with any visibility.
    assert action.transform(x, 2)[0, 2, :2].tolist() != x[0, 2, :2].tolist()


def test_keypoints_that_are_not_labelled_are_acted_on():
    corners = torch.tensor([[x, y, v] for x in (0, 1.0) for y in (0, 1.0) for v in (0, 1.0)])
    batch = torch.cat([corners, torch.rand(9, 3)]).double().unsqueeze(0).repeat(9, 1, 1)
    assert_action(KeypointAction(D4, 17, [(0, 1), (4, 8)]), batch)
    # Corners that are seen move.
    assert not torch.equal(KeypointAction(D4, 17).transform(batch, 1)[0, 1], batch[0, 1])


def test_keypoints_that_are_not_labelled_have_gradients():
    x = LABELLED.clone().requires_grad_()
    action = KeypointAction(ImageAction.horizontal_flip(), 3, [(0, 1)], (48, 48))
    action.transform(x, 1).sum().backward()
    assert x.grad.tolist() == [[[-1, 1, 1], [1, 1, 1], [-1, 1, 1]]]
    assert torch.equal(
        torch.vmap(lambda y: action.transform(y.unsqueeze(0), 1)[0])(LABELLED),
        action.transform(LABELLED, 1),
    )


def test_normals_turn_with_the_picture():
    """(x, y, z), z towards the viewer: of a bowl, whose normals point to its middle."""
    action = VectorFieldAction(d4())
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 6, dtype=torch.float64)] * 2, indexing="ij")
    bowl = torch.stack([-x, -y, torch.ones_like(x)])
    bowl = (bowl / bowl.norm(dim=0)).expand(9, 3, 6, 6)
    for g in range(8):
        torch.testing.assert_close(action.transform(bowl, g), bowl, rtol=0, atol=1e-12)
    assert_action(action, torch.randn(9, 3, 4, 5, dtype=torch.float64))
    images = torch.randn(9, 3, 6, 6, dtype=torch.float64)
    model = EquiTune(ConvNet(3, 3, dense=True).double(), D4, action)
    assert_equivariant(model, images, D4, action)
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(model, images, D4, D4)
    assert action.restrict(d4().subgroup([4])).transform(bowl, 1).shape == bowl.shape
    # Two vectors of three numbers are not explanation from three of two.
    assert torch.equal(
        action.transform(torch.cat([bowl, bowl], 1)[:, :2], 1), action.transform(bowl[:, :2], 1)
    )


CXCYWH = torch.tensor([[[0.2, 0.3, 0.1, 0.1], [0.7, 0.8, 0.2, 0.1]]])
XYXY = torch.tensor([[[0.15, 0.25, 0.25, 0.35], [0.6, 0.75, 0.8, 0.85]]])
XYWH = torch.tensor([[[0.15, 0.25, 0.1, 0.1], [0.75, 0.75, 0.2, 0.1]]])
LEAVING = torch.tensor([[[0.95, 0.8, 0.2, 0.1]]])
RIGHT = {
    "cut by the border": (BoxAction(C4, "xywh"), torch.full((1, 1, 4), 0.6)),
    "one of seven is cut": (BoxAction(C4, "xywh"),
                            torch.cat([CXCYWH[:, :1].repeat(1, 6, 1), LEAVING], 1)),
    "cxcywh": (BoxAction(C4, "cxcywh"), CXCYWH),
    "xyxy": (BoxAction(C4), XYXY),
    "xywh": (BoxAction(C4, "xywh"), XYWH),
    "padded": (BoxAction(C4), torch.cat([XYXY, torch.zeros(1, 3, 4)], 1)),
    "no boxes": (BoxAction(C4), torch.zeros(2, 0, 4)),
    "a little outside": (BoxAction(C4), 1.5 * XYXY - 0.25),
    "pixels": (BoxAction(C4, image_size=(64, 64)), 64 * XYXY),
    "distances": (BoxAction(C4, "ltrb"), 99 * XYWH),
    "deltas": (BoxAction(C4, "deltas"), torch.randn(2, 5, 4)),
    "one box in the middle": (BoxAction(C4), torch.tensor([[0.25, 0.25, 0.75, 0.75]])),
    "keypoints": (KeypointAction(C4, 2), torch.tensor([[[0.1, 0.9], [-0.2, 0.5]]])),
    "keypoints and visibility": (KeypointAction(C4, 1), torch.tensor([[[0.1, 0.9, 17]]])),
    "indices": (KeypointAction(C4, 2, image_size=(6, 6)), torch.tensor([[[1.0, 0.0]] * 2])),
    "one that the border cuts": (BoxAction(C4, "xywh"), torch.tensor([[[0.6, 0.6, 0.6, 0.6]]])),
    "none": (C4, 99 * torch.randn(2, 3, 4, 4)),
}  # fmt: skip
WRONG = {
    "cxcywh as xyxy": (BoxAction(C4), CXCYWH, "after their starts .* 2 of 2 .* or 'cxcywh'"),
    "cxcywh as xywh": (BoxAction(C4, "xywh"),
                       torch.cat([CXCYWH, CXCYWH - torch.tensor([0, 0.1, 0, 0])], 1)
                       + torch.tensor([0.25, 0, 0, 0]),
                       "inside of their images .* 2 of 4 boxes .* use box_format='cxcywh'"),
    "xyxy as cxcywh": (BoxAction(C4, "cxcywh"), XYXY.repeat(1, 2, 1), "use box_format='xyxy'"),
    "one of eight leaves": (BoxAction(C4, "xywh"),
                            torch.cat([CXCYWH[:, :1].repeat(1, 7, 1), LEAVING], 1),
                            "got .0.95, 0.8, 0.2, 0.1., one of 1 of 8 boxes that leave it"),
    "negative width": (BoxAction(C4, "xywh"), -XYWH, "after their starts"),
    "negative height": (BoxAction(C4, "cxcywh"), torch.tensor([[0.5, 0.5, 0.1, -0.1]]), "after"),
    "negative distances": (BoxAction(C4, "ltrb"), -XYXY, "negative size"),
    "one of many": (BoxAction(C4), torch.cat([XYXY.repeat(1, 50, 1), CXCYWH], 1),
                    r"got \[0.2, 0.3, 0.1, 0.1\], one of 2 of 102 boxes"),
    "pixels, relative": (BoxAction(C4), 64 * XYXY, "use image_size=.H, W. for pixels"),
    "one in pixels": (BoxAction(C4), torch.cat([XYXY.repeat(1, 50, 1), 64 * XYXY], 1),
                      "image_size"),
    "relative, in pixels": (BoxAction(C4, image_size=(64, 64)), XYXY, "use image_size=None"),
    "far": (BoxAction(C4, image_size=(32, 32)), torch.full((1, 4), 500.0), "the model sees"),
    "keypoints in pixels": (KeypointAction(C4, 1), torch.full((1, 1, 2), 50.0), "image_size="),
    "keypoints, relative": (KeypointAction(C4, 1, image_size=(64, 64)), torch.full((1, 1, 3), 0.5),
                            "use image_size=None"),
    "means of cells": (BoxAction(C4), torch.tensor([[[0.4, 0.4, 0.6, 0.6], [0.3, 0.3, 0.7, 0.7]]]),
                       "use GridBoxAction or BoxMapAction .* EquiZero or Canonicalize"),
    "in a field": (TreeAction({"b": BoxAction(C4)}), {"b": CXCYWH}, "after their starts"),
}  # fmt: skip


@pytest.mark.parametrize(("action", "y"), RIGHT.values(), ids=RIGHT)
def test_right_coordinates_raise_no_doubts(action, y):
    check_coordinates(y, action)


@pytest.mark.parametrize(("action", "y", "said"), WRONG.values(), ids=WRONG)
def test_coordinates_that_contradict_their_action(action, y, said):
    with pytest.raises(ValueError, match=said):
        check_coordinates(y, action)
    # Calls do not look at values: an untrained head can return anything, in training too.
    action.transform(y, 1)
    with pytest.warns(UserWarning, match=said):
        equivariance_report(lambda x: y, torch.randn(1, 3, 8, 8), C4, action)


@pytest.mark.parametrize(("action", "y", "said"), WRONG.values(), ids=WRONG)
def test_calls_run_where_there_are_no_values_to_look_at(action, y, said):
    """So an accelerator need not wait, and what a call does depends on no device."""
    if torch.is_tensor(y):
        assert action.transform(y.to("meta"), 1).shape == y.shape


def test_the_check_needs_an_action():
    with pytest.raises(TypeError, match="`action` must be an Action, got 'xyxy'"):
        check_coordinates(XYXY, "xyxy")
    with pytest.raises(TypeError, match=r"`coordinates` must be one tensor .* got a list"):
        check_coordinates([XYXY], BoxAction(C4))


class Detr(nn.Module):
    """Small boxes around two places, as (cx, cy, w, h)."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 8)

    def forward(self, images):
        return CXCYWH[0] + 0.01 * self.head(images.mean((2, 3))).view(-1, 2, 4).tanh()


def test_a_wrong_format_is_seen_by_the_assertions_and_not_in_training():
    x, images = torch.rand(5, 3, 8, 8), ImageAction.horizontal_flip()
    model = EquiTune(Detr(), images, BoxAction(images))
    with pytest.warns(UserWarning, match="format 'xyxy', got .* or 'cxcywh'"):
        assert_equivariant(model, x, images, BoxAction(images))
    model(x).sum().backward()
    for untrained in (1e9, -1e9):
        with torch.no_grad():
            model.backbone.head.bias.fill_(untrained)
        model(x).sum().backward()
        with torch.no_grad():
            model(x)


@pytest.mark.parametrize(("call", "error", "said"), [
    (lambda: BoxAction(d4()), TypeError, "ImageAction"),
    (lambda: BoxAction(D4, "yxyx"), ValueError, "'xyxy', 'xywh', 'cxcywh'"),
    (lambda: BoxAction(D4, image_size=(32, 48)), ValueError, "NormalizedCoordinates"),
    (lambda: BoxAction(D4, image_size=(0, 0)), ValueError, "use .H, W."),
    (lambda: BoxAction(D4, image_size=(3, 32, 32)), ValueError, "use .H, W."),
    (lambda: BoxAction(D4, image_size=480), ValueError, "use .H, W."),
    (lambda: BoxAction(D4, image_size=(float("inf"),) * 2), ValueError, "use .H, W."),
    (lambda: label_swaps(D4, 3, [(0,)]), ValueError, "hold pairs"),
    (lambda: label_swaps(D4, 3, [(0, 1, 2)]), ValueError, "hold pairs"),
    (lambda: label_swaps(D4, 3, [0, 1]), ValueError, "hold pairs"),
    (lambda: label_swaps(D4, 3, ["01"]), ValueError, "hold pairs"),
    (lambda: label_swaps(D4, 3, [(0.5, 1)]), ValueError, "got 0.5 in"),
    (lambda: BoxAction(D4).transform(torch.zeros(2, 5), 1), ValueError, "have 4 numbers"),
    (lambda: BoxAction(D4).transform(torch.zeros(4), 1), ValueError, "have 4 numbers"),
    (lambda: BoxAction(D4).transform(torch.zeros(2, 4).long(), 1), TypeError, "int64"),
    (lambda: BoxAction(D4).transform(torch.zeros(2, 4), 8), ValueError, "8"),
    (lambda: KeypointAction(D4, 3, [(0, 3)]), ValueError, "got 3 in"),
    (lambda: KeypointAction(D4, 3, [(0, 1), (1, 2)]), ValueError, "name each class once"),
    (lambda: KeypointAction(D4, 3, [(1, 1)]), ValueError, "name each class once"),
    (lambda: KeypointAction(D4, 0), ValueError, "`keypoints` must be 1 or more, got 0"),
    (lambda: KeypointAction(D4, 3, None), TypeError, "`swaps` must be a sequence"),
    (lambda: BoxAction(D4, image_size=("a", 3)), ValueError, "use .H, W."),
    (lambda: PaddedDetections(Detector(), drop=3), TypeError, "`drop` must be a sequence"),
    (lambda: NormalizedCoordinates(Rows(), [3]), TypeError, "`fields\\[0\\]` must be a str"),
    (lambda: check_coordinates(torch.zeros(2, 3), BoxAction(D4)), ValueError, "have 4 numbers"),
    (lambda: check_coordinates(torch.zeros(2, 1, 4), KeypointAction(D4, 1)), ValueError, "2 or 3"),
    (lambda: KeypointAction(D4, 3).transform(torch.zeros(2, 4, 2), 1), ValueError, "3 entries"),
    (lambda: KeypointAction(D4, 3).transform(torch.zeros(2, 3, 4), 1), ValueError, "2 or 3"),
    (lambda: label_swaps(d4(), 3, []), TypeError, "ImageAction"),
    (lambda: ProductAction.simultaneous(D4, label_swaps(C4, 3, [])), ValueError, "one group"),
    (lambda: ProductAction.simultaneous(
        PermutationAction(symmetric(3), sorted(itertools.permutations(range(3)))),
        PermutationAction(symmetric(3), sorted(itertools.permutations(range(3))))),
     ValueError, "must commute"),
    (lambda: NormalizedCoordinates(3), TypeError, "torch.nn.Module"),
    (lambda: NormalizedCoordinates(Rows(), "boxes"), TypeError, r"\['boxes'\]"),
    (lambda: NormalizedCoordinates(Rows())(torch.zeros(2, 3, 4, 4)), ValueError, "last dimension"),
    (lambda: NormalizedCoordinates(Rows())(torch.zeros(3, 4, 4)), ValueError, "B, C, H, W"),
    (lambda: NormalizedCoordinates(Rows())([1]), TypeError, "B, C, H, W"),
    (lambda: NormalizedCoordinates(Rows(), ["boxes"])(torch.zeros(2, 3, 4, 4)), TypeError,
     "a dict"),
    (lambda: NormalizedCoordinates(InPixels())(torch.zeros(2, 3, 4, 4)), TypeError, "fields="),
    (lambda: NormalizedCoordinates(InPixels(), ["box"])(torch.zeros(2, 3, 4, 4)), ValueError,
     r"\['boxes', 'logits'\]"),
    (lambda: PaddedDetections(Detector(), 0), ValueError, "`most` must be 1 or more, got 0"),
    (lambda: PaddedDetections(3), TypeError, "torch.nn.Module"),
    (lambda: PaddedDetections(Detector(), inputs=3), TypeError, "`inputs` must be a function"),
    (lambda: PaddedDetections(Detector(), drop="masks"), TypeError, r"of names, \['masks'\]"),
    (lambda: PaddedDetections(Detector(), drop=["boxes"]), ValueError, "must not name .'boxes'"),
    (lambda: PaddedDetections(Returns([torch.zeros(2, 6)] * 2))(IMAGES), TypeError,
     r"`model\(images\)\[0\]` must be .* got a tensor"),
    (lambda: PaddedDetections(Returns([]))(IMAGES), ValueError, "0 dicts for 2 images"),
    (lambda: PaddedDetections(Returns({"pred_boxes": IMAGES}).eval())(IMAGES), TypeError,
     r"\['pred_boxes'\]; .* a dict of tensors needs a TreeAction alone"),
    (lambda: PaddedDetections(Detector(), 1)(torch.randn(9, 3, 8, 8)), ValueError,
     "`most` must be . or more, .* got 1"),
    (lambda: PaddedDetections(Detector())(torch.zeros(3, 8, 8)), ValueError, "B, C, H, W"),
    (lambda: PaddedDetections(Rows())(torch.zeros(2, 3, 8, 8)), TypeError, "list of dicts"),
    (lambda: PaddedDetections(Detector())(torch.zeros(0, 3, 8, 8)), ValueError, "empty batch"),
    (lambda: PaddedDetections(Odd("labels"))(torch.zeros(2, 3, 8, 8)), ValueError,
     r"`model\(images\)\[1\]` must have the fields .* without \['labels'\]"),
    (lambda: PaddedDetections(Odd("boxes"))(torch.zeros(2, 3, 8, 8)), ValueError,
     r"\[1\]\['boxes'\]` must be \(N, 4\), .* got shape \(2, 5\)"),
])  # fmt: skip
def test_bad_input(call, error, said):
    torch.manual_seed(0)
    with pytest.raises(error, match=said):
        call()


def test_a_group_of_three_has_no_images_to_move():
    with pytest.raises(ValueError, match="`elements` must say"):
        BoxAction(ImageAction(cyclic(3)))
