"""torch.export, ONNX and AOTInductor, with a dynamic batch."""

import logging
import shutil

import pytest
import torch

from cases import ConvNet
from equitune import EquiTune, ImageAction, c4, d4
from graph_cases import MODELS, build, rows, tensors

IMAGE = ImageAction(d4())
BATCH = torch.export.Dim("batch", min=1, max=64)


@pytest.fixture(autouse=True)
def _without_traces():
    # Else pytest keeps the trace of all that is exported, which takes longer than to export it.
    logging.disable(logging.DEBUG)
    yield
    logging.disable(logging.NOTSET)


def exported(model, x):
    return torch.export.export(model, (x,), dynamic_shapes=({0: BATCH},))


def session(program, path):
    """What onnxruntime makes of an exported program, as a function of a tensor."""
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.onnx.export(program, verbose=False).save(path)
    ran = onnxruntime.InferenceSession(path)
    (given,) = ran.get_inputs()
    return lambda x: [torch.from_numpy(y) for y in ran.run(None, {given.name: x.numpy()})]


@pytest.mark.parametrize(("name", "case"), rows(3), ids=str)
def test_programs_with_a_dynamic_batch(name, case):
    model, x = build(name, case).eval(), case.input(torch.float32)
    found = exported(model, x[:3]).module()
    for size in (1, 2, len(x)):
        torch.testing.assert_close(tensors(found(x[:size])), tensors(model(x[:size])))
    # Tracing leaves nothing behind in the actions.
    assert all(type(y) is torch.Tensor for y in tensors(model(x)))


@pytest.mark.parametrize(("name", "case"), rows(6)[::4], ids=str)
def test_onnx_with_a_dynamic_batch(name, case, tmp_path):
    model, x = build(name, case).eval(), case.input(torch.float32)
    ran = session(exported(model, x[:3]), tmp_path / "model.onnx")
    for size in (1, 2, len(x)):
        expected = tensors(model(x[:size]))
        torch.testing.assert_close(ran(x[:size]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "copies"), [("Canonicalize", 3), ("EquiTune", 24)])
def test_how_often_a_program_holds_the_backbone(name, copies):
    class Marked(ConvNet):
        def forward(self, x):
            return super().forward(x).erfinv()

    model = MODELS[name](Marked(3, 4, False), IMAGE).eval()
    program = torch.export.export(model, (torch.randn(3, 3, 6, 6),))
    marks = [n for n in program.graph.nodes if n.target == torch.ops.aten.erfinv.default]
    assert [n.meta["val"].shape[0] for n in marks] == [copies]


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_aotinductor(tmp_path):
    model = MODELS["Canonicalize"](ConvNet(3, 2, True), IMAGE, IMAGE).eval()
    x = torch.randn(9, 3, 6, 6)
    with torch.no_grad():
        program = exported(model, x[:3])
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "model.pt2")
        )
        compiled = torch._inductor.aoti_load_package(path)
        for size in (1, 2, 9):
            torch.testing.assert_close(compiled(x[:size]), model(x[:size]))


def test_export_refuses_pieces():
    model = EquiTune(ConvNet(3, 4, False), ImageAction(c4()), chunk_size=4).eval()
    with pytest.raises(ValueError, match=r"chunk_size is 4.*export with chunk_size=None"):
        torch.export.export(model, (torch.randn(3, 3, 6, 6),))
