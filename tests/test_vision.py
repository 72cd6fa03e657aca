"""Boxes, keypoints, labels and detections that move with their images."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn

from cases import AnyWeightNet, ConvNet
from equitune import (
    Canonicalize,
    EquiTune,
    EquiZero,
    ImageAction,
    LambdaEquiTune,
    PermutationAction,
    ProductAction,
    TreeAction,
    TrivialAction,
    c4,
    cyclic,
    d4,
    symmetric,
)
from equitune.testing import assert_action, assert_equivariant
from equitune.vision import (
    AbsoluteCoordinates,
    BoxAction,
    KeypointAction,
    PaddedDetections,
    RelativeCoordinates,
    label_swaps,
)

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

    class Backwards(BoxAction.__base__):
        def __init__(self):
            self._boxes = BoxAction(D4)
            self.group = self._boxes.group

        def transform(self, x, g):
            inverses = torch.tensor(self.group.inverses)
            return self._boxes.transform(x, int(inverses[g]) if isinstance(g, int) else inverses[g])

        restrict = _row = _extent = _state = None

    Backwards.__abstractmethods__ = frozenset()
    with pytest.raises(AssertionError):
        assert_action(Backwards(), torch.rand(9, 4, dtype=torch.float64))


class BoxNet(nn.Module):
    """A random network that returns boxes, or keypoints, relative to its images."""

    def __init__(self, *shape):
        super().__init__()
        self.net, self.shape = ConvNet(3, torch.Size(shape).numel(), dense=False), shape

    def forward(self, images):
        return self.net(images).unflatten(1, self.shape)


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


@pytest.mark.parametrize("size", [(8, 8), (6, 9)], ids=str)
def test_boxes_in_pixels_of_any_image(size):
    x = torch.randn(9, 3, *size, dtype=torch.float64)
    network = InPixels().double().eval()
    action = TreeAction({"boxes": BoxAction(D4), "logits": TrivialAction(d4())})
    model = AbsoluteCoordinates(
        EquiTune(RelativeCoordinates(network, ["boxes"]), D4, action), ["boxes"]
    )
    assert_equivariant(RelativeCoordinates(model, ["boxes"]), x, D4, action)
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(RelativeCoordinates(network, ["boxes"]), x, D4, action)
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
        told = model.explain(x)
        for sample, g in enumerate(told.elements.tolist()):
            alone = padded(D4.transform(x[sample : sample + 1], g))
            back = DETECTIONS.transform(alone, D4.group.inverse(g))
            for name, values in back.items():
                torch.testing.assert_close(told.output[name][sample], values[0])
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
    with pytest.raises(ValueError, match=r"an action for 'aux', but .* fields .'out'."):
        EquiTune(segmenter, C4, TreeAction({"out": C4, "aux": C4}))(pictures)


class Rows(nn.Module):
    def forward(self, images):
        return torch.zeros(len(images), 5)


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


@pytest.mark.parametrize(("call", "error", "said"), [
    (lambda: BoxAction(d4()), TypeError, "ImageAction"),
    (lambda: BoxAction(D4, "yxyx"), ValueError, "'xyxy', 'xywh', 'cxcywh'"),
    (lambda: BoxAction(D4, image_size=(32, 48)), ValueError, "RelativeCoordinates"),
    (lambda: BoxAction(D4, image_size=(0, 0)), ValueError, "give .H, W."),
    (lambda: BoxAction(D4, image_size=(3, 32, 32)), ValueError, "give .H, W."),
    (lambda: BoxAction(D4, image_size=480), ValueError, "give .H, W."),
    (lambda: BoxAction(D4, image_size=(float("inf"),) * 2), ValueError, "give .H, W."),
    (lambda: BoxAction(D4).transform(torch.tensor([[10.0, 20, 100, 150]]), 1), ValueError,
     "image_size=.H, W. for pixels, or use equitune.vision.RelativeCoordinates"),
    (lambda: BoxAction(D4, image_size=(32, 32)).transform(torch.full((1, 4), 500.0), 1),
     ValueError, "far outside of the image"),
    (lambda: KeypointAction(D4, 1).transform(torch.full((1, 1, 2), 50.0), 1), ValueError, "pixels"),
    (lambda: label_swaps(D4, 3, [(0,)]), ValueError, "give pairs"),
    (lambda: label_swaps(D4, 3, [(0, 1, 2)]), ValueError, "give pairs"),
    (lambda: label_swaps(D4, 3, [0, 1]), ValueError, "give pairs"),
    (lambda: label_swaps(D4, 3, ["01"]), ValueError, "give pairs"),
    (lambda: label_swaps(D4, 3, [(0.5, 1)]), ValueError, "swaps names 0.5"),
    (lambda: BoxAction(D4).transform(torch.zeros(2, 5), 1), ValueError, "the 4 numbers"),
    (lambda: BoxAction(D4).transform(torch.zeros(4), 1), ValueError, "the 4 numbers"),
    (lambda: BoxAction(D4).transform(torch.zeros(2, 4).long(), 1), TypeError, "int64"),
    (lambda: BoxAction(D4).transform(torch.zeros(2, 4), 8), ValueError, "8"),
    (lambda: KeypointAction(D4, 3, [(0, 3)]), ValueError, "swaps names 3"),
    (lambda: KeypointAction(D4, 3, [(0, 1), (1, 2)]), ValueError, "which names one twice"),
    (lambda: KeypointAction(D4, 3, [(1, 1)]), ValueError, "which names one twice"),
    (lambda: KeypointAction(D4, 0), ValueError, "keypoints is 0"),
    (lambda: KeypointAction(D4, 3).transform(torch.zeros(2, 4, 2), 1), ValueError, "3 entries"),
    (lambda: KeypointAction(D4, 3).transform(torch.zeros(2, 3, 4), 1), ValueError, "2 or 3"),
    (lambda: label_swaps(d4(), 3, []), TypeError, "ImageAction"),
    (lambda: ProductAction.simultaneous(D4, label_swaps(C4, 3, [])), ValueError, "one group"),
    (lambda: ProductAction.simultaneous(
        PermutationAction(symmetric(3), sorted(itertools.permutations(range(3)))),
        PermutationAction(symmetric(3), sorted(itertools.permutations(range(3))))),
     ValueError, "do not commute"),
    (lambda: RelativeCoordinates(3), TypeError, "torch.nn.Module"),
    (lambda: RelativeCoordinates(Rows(), "boxes"), TypeError, r"\['boxes'\]"),
    (lambda: RelativeCoordinates(Rows())(torch.zeros(2, 3, 4, 4)), ValueError, "last dimension"),
    (lambda: RelativeCoordinates(Rows())(torch.zeros(3, 4, 4)), ValueError, "B, C, H, W"),
    (lambda: RelativeCoordinates(Rows())([1]), TypeError, "B, C, H, W"),
    (lambda: RelativeCoordinates(Rows(), ["boxes"])(torch.zeros(2, 3, 4, 4)), TypeError, "dict"),
    (lambda: RelativeCoordinates(InPixels())(torch.zeros(2, 3, 4, 4)), TypeError, "fields="),
    (lambda: RelativeCoordinates(InPixels(), ["box"])(torch.zeros(2, 3, 4, 4)), ValueError,
     r"\['boxes', 'logits'\]"),
    (lambda: PaddedDetections(Detector(), 0), ValueError, "most is 0"),
    (lambda: PaddedDetections(3), TypeError, "torch.nn.Module"),
    (lambda: PaddedDetections(Detector(), 1)(torch.randn(9, 3, 8, 8)), ValueError, "most is 1"),
    (lambda: PaddedDetections(Detector())(torch.zeros(3, 8, 8)), ValueError, "B, C, H, W"),
    (lambda: PaddedDetections(Rows())(torch.zeros(2, 3, 8, 8)), TypeError, "list of dicts"),
    (lambda: PaddedDetections(Detector())(torch.zeros(0, 3, 8, 8)), ValueError, "empty batch"),
    (lambda: PaddedDetections(Odd("labels"))(torch.zeros(2, 3, 8, 8)), ValueError,
     r"image 1 have the fields .* need \['labels'\]"),
    (lambda: PaddedDetections(Odd("boxes"))(torch.zeros(2, 3, 8, 8)), ValueError,
     r"boxes of image 1 have shape \(2, 5\)"),
])  # fmt: skip
def test_bad_input(call, error, said):
    torch.manual_seed(0)
    with pytest.raises(error, match=said):
        call()


def test_a_group_of_three_has_no_images_to_move():
    with pytest.raises(ValueError, match="elements is missing"):
        BoxAction(ImageAction(cyclic(3)))
