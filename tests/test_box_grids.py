"""Boxes of grid cells and anchors, which change cells when their image is rotated or flipped."""

import copy
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cases import AnyWeightNet, ConvNet
from equitune import (
    Canonicalize,
    EquiTune,
    EquiZero,
    ImageAction,
    LambdaEquiTune,
    ProductAction,
    TreeAction,
    c4,
    cyclic,
    d4,
)
from equitune.testing import assert_action, assert_equivariant, assert_matches_formula
from equitune.vision import (
    BoxAction,
    BoxMapAction,
    GridBoxAction,
    KeypointAction,
    check_coordinates,
)

D4, C4 = ImageAction(d4()), ImageAction(c4())
FLIP, HALF = ImageAction.horizontal_flip(), ImageAction.rotation_180()
FORMATS = ("xyxy", "xywh", "cxcywh", "ltrb", "deltas")
STANDING = ((1.0, 1.0), (1.0, 2.0), (2.0, 1.0))
# Random networks return boxes of any size, which the assertions warn of.
pytestmark = pytest.mark.filterwarnings("ignore:the output of fn must hold")


class CellBoxes(nn.Module):
    """An equivariant detector: in each cell a box around the brightness there, as FCOS and SSD.

    Its boxes have another size for each shape of an anchor, and the layout that is asked for.
    """

    def __init__(self, box_format="cxcywh", layout="list", cell=4, anchors=((1.0, 1.0),)):
        super().__init__()
        self.box_format, self.layout, self.cell, self.anchors = box_format, layout, cell, anchors

    def forward(self, images):
        height, width = images.shape[-2:]
        grey = images.mean(1)
        cells = grey.unfold(1, self.cell, self.cell).unfold(2, self.cell, self.cell)
        weights = cells.flatten(3).softmax(-1)
        steps = torch.arange(self.cell, dtype=images.dtype) + 0.5
        across = (weights * steps.repeat(self.cell)).sum(-1)
        down = (weights * steps.repeat_interleave(self.cell)).sum(-1)
        middle = torch.stack([across - self.cell / 2, down - self.cell / 2], -1)
        rows, columns = cells.shape[1:3]
        y, x = torch.meshgrid(
            torch.arange(rows, dtype=images.dtype) + 0.5,
            torch.arange(columns, dtype=images.dtype) + 0.5,
            indexing="ij",
        )
        place = self.cell * torch.stack([x, y], -1)
        spread = cells.flatten(3).std(-1)
        boxes = torch.stack(
            [self._box(middle, place, spread, shape, (width, height)) for shape in self.anchors],
            dim=3,
        )
        if self.layout == "list":
            return boxes.flatten(1, 3)
        return boxes.permute(0, 3, 4, 1, 2).flatten(1, 2)

    def _box(self, middle, place, spread, shape, size):
        sizes = torch.stack([spread * shape[0], spread * shape[1]], -1) + 0.1
        if self.box_format == "deltas":
            return torch.cat([middle, sizes.log()], -1)
        if self.box_format == "ltrb":
            return torch.cat([sizes / 2 - middle, sizes / 2 + middle], -1)
        unit = torch.tensor(size, dtype=middle.dtype)
        middle, sizes = (middle + place) / unit, sizes / unit
        first, last = middle - sizes / 2, middle + sizes / 2
        return torch.cat({
            "xyxy": [first, last], "xywh": [first, sizes], "cxcywh": [middle, sizes],
        }[self.box_format], -1)  # fmt: skip


def both(action, box_format="cxcywh", grid=(2, 2), anchors=((1.0, 1.0),)):
    """The two layouts: detector and action."""
    return {
        "list": (
            CellBoxes(box_format, "list", anchors=anchors),
            GridBoxAction(action, [grid], box_format, anchor_shapes=anchors),
        ),
        "map": (
            CellBoxes(box_format, "map", anchors=anchors),
            BoxMapAction(action, box_format, anchor_shapes=anchors),
        ),
    }


@pytest.mark.parametrize("layout", ["list", "map"])
@pytest.mark.parametrize("box_format", FORMATS)
def test_a_detector_that_is_right_stays_what_it_is(layout, box_format):
    """The check that finds a wrong action: the mean of an equivariant model is the model."""
    x = torch.rand(9, 3, 8, 8, dtype=torch.float64)
    for anchors in (((1.0, 1.0),), STANDING):
        detector, boxes = both(D4, box_format, anchors=anchors)[layout]
        assert_equivariant(detector, x, D4, boxes)
        model = EquiTune(detector, D4, boxes)
        torch.testing.assert_close(model(x), detector(x), rtol=0, atol=1e-12)
        check_coordinates(model(x), boxes)


def test_a_box_action_is_wrong_for_cells():
    """It moves coordinates only; averaged, boxes of four cells are one in the middle."""
    torch.manual_seed(0)
    x, boxes = torch.rand(9, 3, 16, 16, dtype=torch.float64), BoxAction(C4, "cxcywh")
    detector = CellBoxes()
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(detector, x, C4, boxes)
    model = EquiTune(detector, C4, boxes)
    with pytest.warns(UserWarning, match="use GridBoxAction or BoxMapAction"):
        assert_equivariant(model, x, C4, boxes)
    assert (model(x) - detector(x)).abs().max() > 0.1
    with pytest.raises(ValueError, match="all centred where no element moves them"):
        check_coordinates(model(x), boxes)
    # As is the action on the cells alone, and one of another order of the cells.
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(detector, x, C4, GridBoxAction(C4, [(4, 4)], "cxcywh").on_scores())
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(detector, x, C4, GridBoxAction(C4, [(2, 2)] * 4, "cxcywh"))


def test_the_documented_detector_fails_with_a_box_action():
    page = Path(__file__).resolve().parents[1] / "docs" / "guides" / "vision.md"
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
                if "GridBoxAction" in b]  # fmt: skip
    told = {}
    exec(compile(block, str(page), "exec"), told)
    wrong = TreeAction({
        "boxes": BoxAction(told["images"], "cxcywh"), "scores": told["boxes"].on_scores(),
    })  # fmt: skip
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(told["CellBoxes"](), told["x"], told["images"], wrong)
    # The wrapper itself is equivariant, and says nothing.
    model = EquiTune(told["CellBoxes"](), told["images"], wrong)
    with pytest.warns(UserWarning, match="use GridBoxAction"):
        assert_equivariant(model, told["x"], told["images"], wrong, rtol=1e-4)


@pytest.mark.parametrize("size", [(8, 12), (12, 4)], ids=str)
@pytest.mark.parametrize("box_format", FORMATS)
def test_maps_of_images_that_are_not_square(size, box_format):
    x = torch.rand(9, 3, *size, dtype=torch.float64)
    for anchors in (((1.0, 1.0),), STANDING):
        detector = CellBoxes(box_format, "map", anchors=anchors)
        boxes = BoxMapAction(D4, box_format, anchor_shapes=anchors)
        assert_equivariant(detector, x, D4, boxes)
        model = EquiTune(detector, D4, boxes)
        torch.testing.assert_close(model(x), detector(x), rtol=0, atol=1e-12)
        # In the wrong order of the anchors it is another action.
        if anchors is STANDING:
            with pytest.raises(AssertionError, match="not equivariant"):
                assert_equivariant(
                    detector, x, D4, BoxMapAction(D4, box_format, anchor_shapes=[(1, 1)] * 3)
                )


@pytest.mark.parametrize("action", [FLIP, HALF, ImageAction.vertical_flip()], ids=str)
def test_lists_of_grids_that_are_not_square_are_flipped(action):
    x = torch.rand(9, 3, 8, 12, dtype=torch.float64)
    # Anchors of any shapes keep theirs.
    detector, boxes = both(action, grid=(2, 3), anchors=((1.0, 2.0), (3.0, 1.0)))["list"]
    assert_equivariant(detector, x, action, boxes)
    assert_equivariant(detector, x, action, boxes.restrict(action.group.subgroup([1])))


ACTIONS = {
    **{f"list {f}": (GridBoxAction(D4, [(2, 2), (3, 3)], f), (13, 4)) for f in FORMATS},
    "list in pixels": (GridBoxAction(D4, [(2, 2)], "xywh", (48, 48), STANDING), (12, 4)),
    "list flipped": (GridBoxAction(FLIP, [(2, 3)], "xyxy", (32, 48)), (6, 4)),
    **{f"map {f}": (BoxMapAction(D4, f), (4, 3, 5)) for f in FORMATS},
    "map of anchors": (BoxMapAction(D4, "cxcywh", anchor_shapes=STANDING), (12, 3, 3)),
    "maps": (BoxMapAction(D4, "xyxy", (48, 48), STANDING), (2, 12, 2, 3)),
    "map flipped": (BoxMapAction(FLIP, anchor_shapes=[(1, 2)]), (4, 2, 3)),
    "scores": (GridBoxAction(D4, [(3, 3)], anchor_shapes=STANDING).on_scores(), (27, 5)),
    "keypoints": (
        ProductAction.simultaneous(
            KeypointAction(D4, 5, [(1, 2)]), GridBoxAction(D4, [(2, 2)]).on_scores(dim=-3)
        ),
        (4, 5, 2),
    ),
    "maps of scores": (BoxMapAction(D4, anchor_shapes=STANDING).on_scores(5), (15, 3, 2)),
}


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
    assert action != GridBoxAction(D4, [(4, 4)])
    assert action.transform(x.half(), 1).dtype == torch.float16
    y = x[:1].clone().requires_grad_()
    action.transform(y, 1).sum().backward()
    assert y.grad is not None


FORMATS = {torch.channels_last: (), torch.channels_last_3d: (3,)}


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize(("action", "shape"), [
    (BoxMapAction(D4, anchor_shapes=STANDING), (12, 4, 4)),
    (BoxAction(D4), (5, 6, 4)),
    (BoxAction(D4, "xywh"), (5, 6, 4)),
    (BoxAction(D4, "ltrb"), (5, 6, 4)),
    (KeypointAction(D4, 6, [(1, 2)]), (5, 6, 2)),
    (KeypointAction(D4, 6, [(1, 2)]), (5, 6, 3)),
    (GridBoxAction(D4, [(2, 2)], "xywh"), (5, 4, 4)),
    (GridBoxAction(D4, [(2, 2)]).on_scores(), (5, 4, 3)),
], ids=["maps", "xyxy", "xywh", "ltrb", "points", "visible", "grids", "scores"])  # fmt: skip
def test_memory_formats_are_kept(action, shape, memory_format):
    depth = FORMATS[memory_format]
    plain = torch.rand(8, *depth, *shape)
    x = plain.contiguous(memory_format=memory_format)
    for g in [*range(8), torch.arange(8)]:
        moved = action.transform(x, g)
        assert moved.is_contiguous(memory_format=memory_format)
        assert torch.equal(moved, action.transform(plain, g))
        assert action.transform(plain, g).is_contiguous()
    for entry in action.orbit(x):
        assert entry.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(("action", "shape"), [
    (BoxMapAction(D4, anchor_shapes=STANDING), (12, 4, 4)),
    (GridBoxAction(D4, [(2, 2)], "xywh"), (3, 4, 4)),
], ids=["maps", "grids"])  # fmt: skip
def test_actions_can_be_mapped_over(action, shape, last):
    x = torch.rand(8, *shape)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    each = torch.func.vmap(lambda sample: action.orbit(sample[None]).squeeze(1), out_dims=1)(x)
    assert torch.equal(each, action.orbit(x))
    own = torch.func.vmap(lambda sample, g: action.transform(sample[None], g[None])[0])
    assert torch.equal(own(x, torch.arange(8)), action.transform(x, torch.arange(8)))


def test_numbers_of_numpy_are_numbers():
    four, sides = tuple(np.array([4, 4])), tuple(np.array([8.0, 8.0], dtype=np.float32))
    shapes = [tuple(row) for row in np.array([[1, 2], [2, 1]])]
    assert GridBoxAction(C4, [four]) == GridBoxAction(C4, [(4, 4)])
    assert GridBoxAction(C4, [four], "xyxy", sides, shapes) == GridBoxAction(
        C4, [(4, 4)], "xyxy", (8.0, 8.0), [(1, 2), (2, 1)]
    )
    assert BoxAction(C4, image_size=four) == BoxAction(C4, image_size=(4, 4))
    pair = tuple(np.array([0, 1]))
    assert KeypointAction(D4, 2, [pair], sides) == KeypointAction(D4, 2, [(0, 1)], (8, 8))


class Head(nn.Module):
    """A random detector: boxes and scores of every cell, of two grids, in a dict."""

    def __init__(self, layout, anchors):
        super().__init__()
        self.layout, self.anchors = layout, anchors
        self.net = ConvNet(3, 6 * anchors, dense=True)

    def forward(self, images):
        boxes, scores = [], []
        for cell in (2, 4):
            raw = F.avg_pool2d(self.net(images), cell)
            boxes.append(raw[:, : 4 * self.anchors].sigmoid())
            scores.append(raw[:, 4 * self.anchors :])
        if self.layout == "map":
            return {"boxes": boxes, "scores": scores}
        flat = lambda maps, width: torch.cat(  # noqa: E731
            [m.unflatten(1, (-1, width)).permute(0, 3, 4, 1, 2).flatten(1, 3) for m in maps], dim=1
        )
        return {"boxes": flat(boxes, 4), "scores": flat(scores, 2)}


def head_and_action(layout, images):
    backbone = Head(layout, 3).double().eval()
    if layout == "map":
        boxes = BoxMapAction(images, "cxcywh", anchor_shapes=STANDING)
        parts = {"boxes": TreeAction([boxes] * 2), "scores": TreeAction([boxes.on_scores(2)] * 2)}
    else:
        boxes = GridBoxAction(images, [(4, 4), (2, 2)], "cxcywh", anchor_shapes=STANDING)
        parts = {"boxes": boxes, "scores": boxes.on_scores()}
    return backbone, TreeAction(parts)


@pytest.mark.parametrize("images", [C4, D4], ids=["c4", "d4"])
@pytest.mark.parametrize("layout", ["list", "map"])
def test_wrappers_of_random_detectors(layout, images):
    x = torch.randn(9, 3, 8, 8, dtype=torch.float64)
    backbone, action = head_and_action(layout, images)
    first = lambda y: (y["boxes"][0] if layout == "map" else y["boxes"]).flatten(2)[..., 0]  # noqa: E731
    for model in (
        EquiTune(backbone, images, action),
        EquiZero(backbone, images, action, proxy_loss=first),
        LambdaEquiTune(backbone, images, action, weight_net=AnyWeightNet().double()),
        Canonicalize(backbone, images, action, weight_net=AnyWeightNet().double()),
    ):
        assert_equivariant(model, x, images, action)
        assert_matches_formula(model.eval(), x[:3])
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(backbone, x, images, action)


def test_default_boxes_of_torchvision():
    """SSD's default boxes are the same in every image: the action sends them to each other."""
    detection = pytest.importorskip("torchvision.models.detection", reason="torchvision")
    images = detection.image_list.ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)])
    generator = detection.anchor_utils.DefaultBoxGenerator([[2], [2, 3]], clip=False)
    (boxes,) = generator(images, [torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)])
    ratios = [(1, 1), (1, 1), (2**0.5, 2**-0.5), (2**-0.5, 2**0.5)]
    more = [*ratios, (3**0.5, 3**-0.5), (3**-0.5, 3**0.5)]
    for grid, shapes, part in (((4, 4), ratios, boxes[:64]), ((2, 2), more, boxes[64:])):
        action = GridBoxAction(D4, [grid], "xyxy", (64, 64), shapes)
        for g in range(8):
            torch.testing.assert_close(action.transform(part[None], g)[0], part)
        wrong = GridBoxAction(D4, [grid], "xyxy", (64, 64), [(1, 1)] * len(shapes))
        assert (wrong.transform(part[None], 1)[0] - part).abs().max() > 1


@pytest.mark.parametrize(("call", "error", "said"), [
    (lambda: GridBoxAction(d4(), [(2, 2)]), TypeError, "ImageAction"),
    (lambda: BoxMapAction(None), TypeError, "ImageAction"),
    (lambda: GridBoxAction(D4, [(2, 2)], "yxyx"), ValueError, "'ltrb', 'deltas'"),
    (lambda: GridBoxAction(D4, 4), TypeError, "`grids` must be a sequence, got 4"),
    (lambda: GridBoxAction(D4, (4, 4)), TypeError, "`grids` must be a list of pairs, got .4, 4."),
    (lambda: GridBoxAction(D4, "44"), TypeError, "`grids` must be a sequence, got '44'"),
    (lambda: GridBoxAction(D4, []), ValueError, "`grids` must have 1 or more entries"),
    (lambda: GridBoxAction(D4, [(0, 0)]), ValueError, "positive numbers"),
    (lambda: GridBoxAction(D4, [(2.5, 2.5)]), TypeError, "`rows` must be an int, got 2.5"),
    (lambda: GridBoxAction(D4, [(float("inf"),) * 2]), ValueError, "finite positive numbers"),
    (lambda: GridBoxAction(C4, [(2, 2), (2, 3)]), ValueError,
     r"got .*\(2, 3\)\]; use BoxMapAction"),
    (lambda: GridBoxAction(C4, [(2, 2)], image_size=(4, 8)), ValueError, "NormalizedCoordinates"),
    (lambda: BoxMapAction(C4, anchor_shapes=3), TypeError, "`anchor_shapes` must be a sequence"),
    (lambda: BoxMapAction(C4, anchor_shapes=[(1, -2)]), ValueError, "positive numbers"),
    (lambda: BoxMapAction(C4, anchor_shapes=[(float("inf"), 1.0)]), ValueError, "finite positive"),
    (lambda: BoxMapAction(FLIP, anchor_shapes=[(float("nan"), 1)]), ValueError, "finite positive"),
    (lambda: BoxMapAction(C4, anchor_shapes=[(10, 13), (16, 30)]), ValueError,
     r"got \(10, 13\) without its \(13, 10\)"),
    (lambda: BoxMapAction(C4, anchor_shapes=[(1, 2), (1, 2), (2, 1)]), ValueError, "as often"),
    (lambda: GridBoxAction(D4, [(2, 2)]).transform(torch.zeros(1, 5, 4), 1), ValueError,
     r"4 entries along dim -2 .* for GridBoxAction, got shape \(1, 5, 4\)"),
    (lambda: GridBoxAction(D4, [(2, 2)]).transform(torch.zeros(1, 4, 5), 1), ValueError,
     "4 numbers"),
    (lambda: GridBoxAction(D4, [(2, 2)]).transform(torch.zeros(1, 4, 4), 8), ValueError, "8"),
    (lambda: GridBoxAction(D4, [(2, 2)]).restrict(3), TypeError, "embedding"),
    (lambda: BoxMapAction(D4).transform(torch.zeros(1, 8, 3, 3), 1), ValueError,
     r"4 channels for each of 1 anchors, got shape \(1, 8"),
    (lambda: BoxMapAction(D4).transform(torch.zeros(4, 3, 3), 1), ValueError, "batch"),
    (lambda: BoxMapAction(D4).transform(torch.zeros(1, 4, 3, 3).long(), 1), TypeError, "int64"),
    (lambda: BoxMapAction(D4).on_scores("a"), ValueError, "`classes` must be 1 or more, got 'a'"),
    (lambda: BoxMapAction(D4).on_scores(0), ValueError, "`classes` must be 1 or more, got 0"),
    (lambda: GridBoxAction(ImageAction(cyclic(3)), [(2, 2)]), ValueError, "`elements` must say"),
])  # fmt: skip
def test_bad_input(call, error, said):
    with pytest.raises(error, match=said):
        call()
