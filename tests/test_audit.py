"""The audit: the command from end to end, its figures against literal loops, and bad input."""

# ruff: noqa: F401, F811 - fixtures are imported.

import base64
import io
import math
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image
from torch import nn

from audit_cases import (
    CLASSES,
    CODE,
    SIDE,
    call,
    folder,
    images_of,
    noise,
    normalised,
    rows_of,
    save,
)
from equitune import ImageAction, c4, d4
from equitune.audit import audit, find_images, load_classifier, read_batches, wrap
from equitune.audit._checkpoints import load_checkpoint
from equitune.audit._choices import GROUPS
from equitune.audit._images import spread

# Figures


def test_the_tables_are_what_a_literal_loop_finds(folder, call):
    code, printed, _ = call("--labels", "--batch-size", "5")
    elements, models = rows_of(printed)
    model = load_classifier("code/nets.py:linear").module
    images = [normalised(p) for p in sorted((folder / "images").glob("*/*.png"))]
    changed = set()
    disagreements = []
    for k, element in enumerate(["e", "r", "r^2", "r^3"]):
        same, right, distances = 0, 0, []
        for i, image in enumerate(images):
            upright = model(image[None])[0].tolist()
            turned = model(torch.rot90(image, k, (1, 2))[None])[0].tolist()
            prediction, before = turned.index(max(turned)), upright.index(max(upright))
            same += prediction == before
            right += prediction == i // 4
            distances += [abs(one - other) for one, other in zip(turned, upright, strict=True)]
            if prediction != before:
                changed.add(i)
        disagreements.append(1 - same / 12)
        assert elements["plain", element] == [
            f"{same / 12:.2%}", f"{sum(distances) / len(distances):.2g}", f"{right / 12:.2%}"
        ]  # fmt: skip
    assert code == 0
    assert 0 < len(changed) < 12
    assert models["plain"][:2] == [f"{len(changed) / 12:.2%}", f"{max(disagreements):.2%}"]
    assert models["plain"][2] == ["e", "r", "r^2", "r^3"][disagreements.index(max(disagreements))]
    for wrapper in ("EquiTune", "EquiZero"):
        assert models[wrapper] == ["0.00%", "0.00%", "-"]
        assert {elements[wrapper, g][0] for g in ("e", "r", "r^2", "r^3")} == {"100.00%"}


def test_what_is_printed_can_be_pasted(folder, call):
    _, printed, errors = call("--wrappers", "--limit", "6")
    assert not errors
    assert printed.startswith(
        "model     code/nets.py:linear\nweights   those that it was made with"
    )
    assert "group     c4, 4 elements\nimages    6, evenly spaced among 12\n" in printed
    assert f"torch {torch.__version__}" in printed
    assert set(rows_of(printed)[1]) == {"plain"}


def test_terminals_see_progress(folder, call, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    errors = call("--limit", "6")[2]
    assert "/72 [" in errors  # six images, four elements, three models


def test_a_model_with_half_of_the_symmetry(folder, call):
    elements, models = rows_of(call(model="HalfTurn")[1])
    assert elements["plain", "r^2"] == ["100.00%", "0"]
    assert float(elements["plain", "r"][0][:-1]) < 100
    assert elements["plain", "r"][0] == elements["plain", "r^3"][0]
    assert models["plain"][2] == "r"


@pytest.mark.parametrize(
    ("group", "moved"),
    [
        ("horizontal_flip", lambda x: x.flip(-1)),
        ("vertical_flip", lambda x: x.flip(-2)),
        ("rotation_180", lambda x: x.flip((-2, -1))),
    ],
)
def test_groups_of_two_do_what_they_are_called(group, moved):
    x = torch.rand(2, 3, 4, 6)
    action = GROUPS[group]()
    assert torch.equal(action.transform(x, 1), moved(x))
    assert action.group.names == ("e", {"rotation_180": "r^2"}.get(group, group.replace("_", " ")))
    assert action == getattr(ImageAction, group)()


def test_wrappers_run_on_every_transformed_image():
    seen = []

    class Counting(nn.Flatten):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)[:, :3]

    model, action, ticks = Counting(), ImageAction(d4()), []
    found = audit(
        model, torch.rand(10, 3, 4, 4).split(4), action, wrappers=wrap(model, action),
        progress=ticks.append,
    )  # fmt: skip
    assert sum(seen) == 10 * (8 + 2 * 8 * 8)
    assert sum(ticks) == 10 * 8 * 3
    assert [m.predictions.shape for m in found.models] == [(8, 10)] * 3


def test_shares_are_of_counts():
    """3 of 10 disagree: 1 - 0.7 is more than 0.3."""
    images = torch.zeros(10, 1, 2, 2)
    images[:3, 0, 0, 0] = 1

    class Corner(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0, 0, 0], 0.5 - 0 * x[:, 0, 0, 0]], dim=1)

    found = audit(Corner(), images.split(4), ImageAction(c4()))
    assert found.plain.largest_disagreement == 0.3
    assert found.plain.changed == 0.3
    assert found.worst(2) == [0, 1]
    assert found.names[:2] == ("0", "1")


def test_the_worst_images_are_those_that_change_most():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    found = audit(model, torch.randn(40, 1, 4, 4).split(7), ImageAction(c4()))
    changes = (found.plain.predictions != found.plain.predictions[0]).sum(0).tolist()
    worst = found.worst(100)
    assert sorted(worst) == [i for i, n in enumerate(changes) if n]
    assert [changes[i] for i in worst] == sorted((n for n in changes if n), reverse=True)
    assert found.worst(5) == worst[:5]


def test_flags_are_restored_and_models_run_in_eval_mode():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Dropout(), nn.Linear(12, 2))
    model[1].eval()
    before = model[1].running_mean.clone()
    action = ImageAction(c4())
    found = audit(model, [torch.rand(5, 3, 2, 2)], action, wrappers=wrap(model, action))
    assert [m.training for m in model] == [True, False, True, True]
    assert model.training
    assert torch.equal(model[1].running_mean, before)
    assert found.models[1].changed == 0


def test_a_model_may_work_in_place():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.mul_(0.5).flatten(1)[:, :3]

    images = torch.rand(5, 3, 4, 4)
    kept = images.clone()
    audit(InPlace(), [images], ImageAction(c4()))
    assert torch.equal(images, kept)


# Exit codes


def test_the_gate(folder, call):
    model = load_classifier("code/nets.py:linear").module
    found = audit(model, [images_of(folder)], ImageAction(c4())).plain.largest_disagreement
    assert 0 < found < 1
    assert call("--max-disagreement", repr(found))[0] == 0
    code, printed, errors = call("--max-disagreement", repr(math.nextafter(found, 0)))
    assert code == 1
    assert "report: " in printed
    assert f"largest disagreement is {found:.4g}, at " in errors
    assert call()[0] == 0


@pytest.mark.parametrize("group", ["d4", "c4"])
def test_an_invariant_model_passes_the_strictest_gate(folder, call, group):
    code, printed, _ = call("--max-disagreement", "0", model="Extremes", group=group)
    assert code == 0
    assert rows_of(printed)[1]["plain"] == ["0.00%", "0.00%", "-"]
    assert "No image is shown" in (folder / "equitune-audit.html").read_text()


def test_the_command_starts_with_torch_alone():
    program = (
        "import sys\n"
        "for name in ('PIL', 'torchvision', 'timm', 'transformers', 'tqdm', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        "from equitune.audit._command import main\n"
        "main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "audit", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--max-disagreement" in done.stdout


# Report


def test_the_report_needs_nothing_else(folder, call):
    hostile, name = '<b onclick="x">&', "<img src=x onerror=alert(1)>&.png"
    save(folder / "images" / hostile / name, noise())
    (folder / "images" / "c" / "0.png").rename(folder / "images" / hostile / "0.png")
    for path in (folder / "images" / "c").iterdir():
        path.unlink()
    (folder / "images" / "c").rmdir()
    code, printed, _ = call("--labels", "--report", "audit.html", "--worst", "100")
    page = (folder / "audit.html").read_text()
    assert code == 0
    assert "report: audit.html" in printed
    assert not re.search(
        "http|//|<script|<link|@import|url\\(", re.sub(r"base64,[\w+/=]+", "", page)
    )
    assert hostile not in page
    assert name not in page
    assert "&lt;b onclick=&#34;x&#34;&gt;&amp;" in page
    tags = set(re.findall(r"</?(\w+)", page))
    assert tags == {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "dl", "dt", "dd"),
        *("table", "tr", "th", "td", "figure", "figcaption", "img"),
    }
    for row in rows_of(printed)[0].values():
        assert all(f"<td>{cell}</td>" in page for cell in row)


def test_the_pictures_are_the_transformed_images(folder, call):
    assert call("--worst", "2", "--wrappers")[0] == 0
    page = (folder / "equitune-audit.html").read_text()
    assert page.count("<figure>") == 2
    pictures = [
        torch.tensor(list(Image.open(io.BytesIO(base64.b64decode(png))).tobytes()))
        for png in re.findall(r"data:image/png;base64,([^\"]+)", page)
    ]
    names = re.findall(r"<figcaption>([^<]+)</figcaption>", page)
    assert len(pictures) == 8
    for i, name in enumerate(names):
        image = Image.open(folder / "images" / name)
        pixels = torch.tensor(list(image.tobytes())).view(SIDE, SIDE, 3)
        for k in range(4):
            assert torch.equal(pictures[4 * i + k], torch.rot90(pixels, k, (0, 1)).flatten())


# Labels


def accuracy(printed):
    return rows_of(printed)[0]["plain", "e"][2]


def predictions(folder):
    model = load_classifier("code/nets.py:linear").module
    return model(images_of(folder)).argmax(-1).tolist()


def test_labels_of_folders_and_files_are_the_same(folder, call):
    names = [p.relative_to(folder / "images").as_posix() for p in find_images(folder / "images")]
    lines = ["label,note,image", *(f"{i // 4},x,{name}" for i, name in enumerate(names))]
    (folder / "right.csv").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    assert accuracy(call("--labels", "right.csv")[1]) == accuracy(call("--labels")[1])
    lines = ["image,label", *map("{},{}".format, names, predictions(folder)), "another.png,0"]
    (folder / "found.csv").write_text("\n".join(lines))
    assert accuracy(call("--labels", "found.csv")[1]) == "100.00%"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "`labels` must be a file that exists"),
        ("image;label\na/0.png;1\n", "must have image,label"),
        ("image,label\na/0.png,1\na/1.png,1\n", "no label for 10 images: a/2.png, a/3.png, b/0"),
        ("image,label\na/0.png,1\na/0.png,2\n", "2 rows for 1 images"),
        ("all as 3", "'3'; use an index from 0 to 2"),
        ("all as cat", "'cat'; use an index from 0 to 2"),
    ],
)
def test_bad_label_files(folder, call, text, message):
    if text is not None:
        if text.startswith("all as "):
            names = (p.relative_to(folder / "images") for p in find_images(folder / "images"))
            text = "image,label\n" + "".join(f"{name},{text.split()[-1]}\n" for name in names)
        (folder / "labels.csv").write_text(text)
    code, _, errors = call("--labels", "labels.csv")
    assert code == 2
    assert message in errors


def test_folders_that_are_not_the_classes(folder, call):
    save(folder / "images" / "d" / "0.png", noise())
    code, _, errors = call("--labels")
    assert code == 2
    assert "has 4 folders, but the model has 3 classes" in errors
    save(folder / "images" / "loose.png", noise())
    assert "loose.png directly in" in call("--labels")[2]


# Images


def test_images_of_all_kinds_are_found_in_order(tmp_path):
    for name in ("b/x.PNG", "a.jpeg", "b/c/y.webp", "z.bmp", ".hidden/q.png", "b/._x.png"):
        save(tmp_path / name, noise())
    (tmp_path / "note.txt").write_text("no image")
    found = [p.relative_to(tmp_path).as_posix() for p in find_images(tmp_path)]
    assert found == ["a.jpeg", "b/c/y.webp", "b/x.PNG", "z.bmp"]


def test_a_limit_meets_every_class():
    paths = [f"{name}{i}" for name in "abcd" for i in range(25)]
    assert [p[0] for p in spread(paths, 4)] == list("abcd")
    assert spread(paths, None) == spread(paths, 1000) == paths


def test_images_are_upright_as_their_exif_data_say(tmp_path):
    pixels = noise(4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned; to be turned clockwise
    Image.frombytes("RGB", (6, 4), bytes(pixels.flatten().tolist())).save(
        tmp_path / "x.png", exif=exif
    )
    preprocessing = load_classifier_of_identity(tmp_path).preprocessing
    (batch,) = read_batches([tmp_path / "x.png"], preprocessing, 1)
    turned = torch.rot90(pixels, -1, (0, 1)).permute(2, 0, 1) / 255
    assert torch.allclose(preprocessing.undo(batch[0]), turned, atol=1e-6)


def load_classifier_of_identity(folder):
    (folder / "identity.py").write_text("from torch.nn import Identity")
    return load_classifier(f"{folder / 'identity.py'}:Identity")


def test_size_mean_and_std(tmp_path):
    (tmp_path / "identity.py").write_text("from torch.nn import Identity")
    preprocessing = load_classifier(
        f"{tmp_path / 'identity.py'}:Identity", size=6, mean=(0, 0.5, 1), std=(1, 0.5, 2)
    ).preprocessing
    save(tmp_path / "x.png", torch.full((9, 30, 3), 255, dtype=torch.uint8))
    (batch,) = read_batches([tmp_path / "x.png"], preprocessing, 1)
    assert batch.shape == (1, 3, 6, 6)
    assert batch[0, :, 0, 0].tolist() == [1, 1, 0]
    assert torch.equal(preprocessing.undo(batch[0]), torch.ones(3, 6, 6))


def test_mixed_sizes(folder, call):
    save(folder / "images" / "b" / "9.png", noise(10, 12))
    code, _, errors = call(model="Extremes")
    assert code == 2
    assert "is 8 x 8 and images/b/9.png is 10 x 12; use --size" in errors
    assert call("--size", "8")[0] == 0
    assert call("--batch-size", "1", model="Extremes")[0] == 0


def test_images_that_are_not_square(folder, call):
    for path in find_images(folder / "images"):
        save(path, noise(8, 12))
    assert call("--max-disagreement", "0", model="Extremes", group="d4")[0] == 0
    # The model's own error is no verdict of the gate.
    code, _, errors = call()
    assert code == 3
    assert "Traceback" in errors
    assert "shapes cannot be multiplied" in errors


def test_images_that_cannot_be_read(folder, call):
    (folder / "images" / "a" / "9.jpg").write_bytes(b"no image")
    code, _, errors = call()
    assert code == 2
    assert "a/9.jpg cannot be read as an image" in errors


def test_no_images(folder, call):
    (folder / "empty").mkdir()
    assert "holds no images" in call("--images", "empty")[2]
    assert "`images` must be a folder, got 'nowhere'" in call("--images", "nowhere")[2]


def test_logits_that_are_not_finite(folder, call):
    save(folder / "images" / "b" / "2.png", torch.zeros(SIDE, SIDE, 3, dtype=torch.uint8) + 9)
    code, _, errors = call("--mean", "0", "0", "0", "--std", "1", "1", "1", model="Contrast")
    assert code == 2
    assert "not finite for image b/2.png under e" in errors


# Models and weights


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--group", "c5"], "invalid choice: 'c5'"),
        (["--model", "resnet18"], "use torchvision:NAME"),
        (["--model", "code/nets.py:"], "use torchvision:NAME"),
        (["--model", "code/none.py:linear"], "there is none"),
        (["--model", "no_such_module:linear"], "but there is none"),
        (["--model", "code/nets.py:none"], "has no 'none'"),
        (["--model", "code/nets.py:number"], "got 1 from 'code/nets.py:number'"),
        (["--model", "code/nets.py:no_module"], "that returns a torch.nn.Module, got 1"),
        (["--model", "code/nets.py:Dense"], "must return logits (B, C)"),
        (["--model", "code/nets.py:brightness"], "at least two classes"),
        (
            ["--model", "code/nets.py:Nothing"],
            "must return one tensor of logits (B, C), got a dict",
        ),
        (["--model", "torchvision:resnet81"], "near it: ["),
        (
            ["--model", "torchvision:resnet18"],
            "`weights` must be IMAGENET1K_V1, DEFAULT or a .safetensors",
        ),
        (["--model", "torchvision:resnet18", "--weights", "V3"], "file, got 'V3'"),
        (["--weights", "IMAGENET1K_V1"], "`weights` must be DEFAULT or a .safetensors"),
        (["--weights", "none.pt"], "`weights` must be a file that exists"),
        (["--weights", "broken.pt"], "cannot be read as weights"),
        (["--weights", "broken.safetensors"], "cannot be read as safetensors"),
        (["--classes", "3"], "only models of torchvision and timm"),
        (["--std", "1", "0", "1"], "three positive numbers"),
        (["--report", "none/audit.html"], "must be a file in a folder that exists"),
        (["--max-disagreement", "7"], "a share between 0 and 1"),
        (["--max-disagreement", "nan"], "a share between 0 and 1"),
        (["--max-disagreement", "x"], "a share between 0 and 1"),
        (["--batch-size", "0"], "1 or more"),
        (["--limit", "-3"], "1 or more"),
        (["--device", "nowhere"], "cannot be used"),
        (["--wrappers", "lambda"], "invalid choice"),
        (["--weight-input", "0"], "weight-net is missing"),
        (
            ["--weight-net", "code/nets.py:linear", "--weight-net-weights", "x"],
            "weight-net-weights",
        ),
        (["--weight-net", "code/nets.py:brightness", "--weight-input", "9"], "no submodule"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_requests(folder, call, options, message):
    for name in ("broken.pt", "broken.safetensors"):
        (folder / name).write_bytes(b"nothing of that kind")
    code, printed, errors = call(*options)
    assert code == 2
    assert "equitune audit: error: " in errors
    assert message in errors
    assert "Traceback" not in errors
    assert "report" not in printed


def test_a_module_in_the_current_folder(folder, call):
    (folder / "audited_here.py").write_text(CODE)
    before = list(sys.path)
    try:
        assert rows_of(call(model="audited_here:linear")[1]) == rows_of(call()[1])
    finally:
        sys.modules.pop("audited_here", None)
    assert sys.path == before


WAYS = {
    "w.pt": lambda state: state,
    "nested.pth": lambda state: {"state_dict": state, "epoch": 3},
    "model.pth": lambda state: {"model": state},
    "parallel.pt": lambda state: {f"module.{key}": value for key, value in state.items()},
}


@pytest.mark.parametrize("name", [*WAYS, "w.safetensors"])
def test_weights_from_files(tmp_path, name):
    trained, model = nn.Linear(3, 2), nn.Linear(3, 2)
    if name in WAYS:
        torch.save(WAYS[name](trained.state_dict()), tmp_path / name)
    else:
        pytest.importorskip("safetensors.torch").save_file(trained.state_dict(), tmp_path / name)
    load_checkpoint(model, str(tmp_path / name))
    assert torch.equal(model.weight, trained.weight)


def test_weights_change_the_figures(folder, call):
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).state_dict(), "w.pt")
    code, printed, _ = call("--weights", "w.pt")
    assert code == 0
    assert "weights   w.pt\n" in printed
    assert rows_of(printed) != rows_of(call()[1])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.ones(2, 3), "other": torch.ones(1)}, "Missing: bias. Unexpected: other."),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(5)}, "size mismatch for bias"),
        ({"weight": 1}, "holds no state dict"),
        ({f"k{i:02}": torch.ones(1) for i in range(30)}, "k18, k19 and 10 more"),
        ([1], "holds no state dict"),
    ],
    ids=["keys", "shape", "number", "many", "list"],
)
def test_weights_that_do_not_fit(tmp_path, state, message):
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=re.escape(message)):
        load_checkpoint(nn.Linear(3, 2), str(tmp_path / "w.pt"))


def test_pickles_are_not_executed(tmp_path):
    torch.save(nn.Linear(3, 2), tmp_path / "w.pt")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_checkpoint(nn.Linear(3, 2), str(tmp_path / "w.pt"))


def test_a_torchvision_model_with_a_file(folder, call):
    models = pytest.importorskip("torchvision.models")
    trained = models.squeezenet1_1(num_classes=CLASSES).eval()
    pytest.importorskip("safetensors.torch").save_file(trained.state_dict(), "w.safetensors")
    options = ["--weights", "w.safetensors", "--size", "32", "--labels"]
    code, printed, _ = call(*options, model="torchvision:squeezenet1_1")
    assert code == 0
    weights = models.SqueezeNet1_1_Weights.DEFAULT
    convert = weights.transforms(crop_size=32, resize_size=round(32 * 256 / 224))
    paths = find_images(folder / "images")
    images = torch.stack([convert(Image.open(path)) for path in paths])
    labels = torch.arange(12) // 4
    found = audit(trained, [images], ImageAction(c4()), labels=labels)
    for g, element in enumerate(found.elements):
        agreement, change, right = rows_of(printed)[0]["plain", element]
        assert agreement == f"{found.plain.agreement(g):.2%}"
        assert change == f"{found.plain.logit_change(g):.2g}"
        assert right == f"{found.plain.accuracy(g, labels):.2%}"
    code, _, errors = call(*options, "--classes", "5", model="torchvision:squeezenet1_1")
    assert code == 2
    assert "size mismatch for classifier.1" in errors


def test_the_preprocessing_and_classes_of_torchvision(tmp_path):
    models = pytest.importorskip("torchvision.models")
    torch.save(models.squeezenet1_1().state_dict(), tmp_path / "w.pt")
    found = load_classifier("torchvision:squeezenet1_1", str(tmp_path / "w.pt"), std=(1, 1, 1))
    assert found.class_names[:2] == ("tench", "goldfish")
    assert not found.module.training
    white = Image.new("RGB", (300, 280), "white")
    x = found.preprocessing.convert(white)
    assert x.shape == (3, 224, 224)
    assert torch.allclose(x[:, 0, 0], 1 - torch.tensor([0.485, 0.456, 0.406]))


@pytest.mark.parametrize("name", ["DEFAULT", "IMAGENET1K_V1"])
def test_torchvision_weights_by_name(folder, call, monkeypatch, name):
    """Random ones, where torchvision keeps what it has downloaded."""
    models = pytest.importorskip("torchvision.models")
    monkeypatch.setenv("TORCH_HOME", str(folder / "home"))
    kept = folder / "home" / "hub" / "checkpoints"
    kept.mkdir(parents=True)
    weights = models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    torch.save(models.squeezenet1_1().state_dict(), kept / weights.url.split("/")[-1])
    options = ["--weights", name, "--size", "32", "--limit", "2"]
    code, printed, _ = call(*options, model="torchvision:squeezenet1_1")
    assert code == 0
    assert "weights   SqueezeNet1_1_Weights.IMAGENET1K_V1\n" in printed
    code, _, errors = call(*options, "--labels", model="torchvision:squeezenet1_1")
    assert code == 2
    assert "has 3 folders, but the model has 1000 classes, and none of them is the name" in errors


@pytest.fixture
def vit(folder):
    """A small ViT and its processor, saved as transformers saves them; its classes are c, b, a."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=SIDE, patch_size=4, id2label=dict(enumerate("cba")),
        label2id={name: i for i, name in enumerate("cba")},
    )  # fmt: skip
    # Larger than the default, so that logits differ by more than rounding.
    config.initializer_range = 1.0
    model = transformers.ViTForImageClassification(config)
    model.save_pretrained("vit")
    processor = transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    processor.save_pretrained("vit")
    return model.eval()


def test_a_transformers_model_from_a_folder(folder, call, vit):
    code, printed, _ = call("--labels", model="transformers:vit")
    assert code == 0
    # Mean and standard deviation of this processor are 0.5.
    undone = [normalised(p) for p in find_images(folder / "images")]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = torch.stack([((x.permute(1, 2, 0) * std + mean) * 2 - 1) for x in undone])
    images = images.permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        found = vit(images).logits.argmax(-1)
    right = int((found == 2 - torch.arange(12) // 4).sum())
    assert accuracy(printed) == f"{right / 12:.2%}"
    page = (folder / "equitune-audit.html").read_text()
    assert "label a</figcaption>" in page or "label b</figcaption>" in page


def test_class_names_in_a_label_file(folder, call, vit):
    names = [p.relative_to(folder / "images").as_posix() for p in find_images(folder / "images")]
    rows = ["image,label", *(f"{name},{name[0]}" for name in names)]
    (folder / "labels.csv").write_text("\n".join(rows))
    by_file = call("--labels", "labels.csv", model="transformers:vit")[1]
    assert rows_of(by_file) == rows_of(call("--labels", model="transformers:vit")[1])


def test_transformers_with_a_file_and_another_normalisation(folder, call, vit):
    pytest.importorskip("safetensors.torch").save_file(
        {k: v.clone() for k, v in vit.state_dict().items()}, "w.safetensors"
    )
    same = call("--weights", "w.safetensors", model="transformers:vit")[1]
    assert rows_of(same) == rows_of(call(model="transformers:vit")[1])
    found = load_classifier("transformers:vit", mean=(0, 0, 0), std=(1, 1, 1), size=4)
    x = found.preprocessing.convert(Image.new("RGB", (9, 9), "white"))
    assert torch.equal(x, torch.ones(3, 4, 4))


def test_a_transformers_model_without_a_head(folder, vit):
    vit.vit.save_pretrained("vit")
    with pytest.raises(ValueError, match=r"no weights for classifier\.bias"):
        load_classifier("transformers:vit")


def test_two_classes_of_one_name(folder, call, vit):
    vit.config.id2label = dict(enumerate("aabc"))
    vit.config.label2id = {"a": 1, "b": 2, "c": 3}
    vit.classifier = nn.Linear(16, 4)
    vit.save_pretrained("vit")
    code, _, errors = call("--labels", model="transformers:vit")
    assert code == 2
    assert "a name that the model has for 2 classes" in errors


def test_a_timm_model_with_a_file(folder, call):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    trained = timm.create_model("test_resnet", pretrained=False, num_classes=CLASSES)
    torch.save(trained.state_dict(), "w.pt")
    code, printed, _ = call("--weights", "w.pt", "--size", "32", model="timm:test_resnet")
    assert code == 0
    found = load_classifier("timm:test_resnet", "w.pt", size=32)
    batches = list(read_batches(find_images(folder / "images"), found.preprocessing, 5))
    assert batches[0].shape == (5, 3, 32, 32)
    found = audit(trained, batches, ImageAction(c4()))
    assert rows_of(printed)[1]["plain"][0] == f"{found.plain.changed:.2%}"
    code, _, errors = call(model="timm:test_resnet")
    assert code == 2
    assert "`weights` must be DEFAULT or" in errors
    assert "timm cannot load 'none'" in call("--weights", "DEFAULT", model="timm:none")[2]


@pytest.mark.parametrize("family", ["timm", "transformers", "torchvision"])
def test_a_family_that_is_not_installed(folder, call, monkeypatch, family):
    monkeypatch.setitem(sys.modules, family, None)
    monkeypatch.setitem(sys.modules, f"{family}.models", None)
    code, _, errors = call(model=f"{family}:resnet18")
    assert code == 2
    assert f"pip install {family}\n" in errors


def test_a_trained_weight_network_adds_its_row(folder, call):
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(192, 1)).state_dict(), "w.pt")
    code, printed, _ = call(
        "--weight-net", "code/nets.py:brightness", "--weight-net-weights", "w.pt", "--wrappers"
    )
    models = rows_of(printed)[1]
    assert code == 0
    assert list(models) == ["plain", "LambdaEquiTune"]
    assert models["LambdaEquiTune"] == ["0.00%", "0.00%", "-"]
    code, _, errors = call("--weight-net", "code/nets.py:linear")
    assert code == 2
    assert "one logit per copy" in errors


# From Python


def test_bad_calls():
    model, action = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), ImageAction(c4())
    images = torch.rand(5, 3, 2, 2)
    with pytest.raises(TypeError, match=r"images\.split\(64\)"):
        audit(model, images, action)
    with pytest.raises(ValueError, match="must have at least one image"):
        audit(model, [], action)
    with pytest.raises(ValueError, match="'plain'"):
        audit(model, [images], action, wrappers={"plain": model})
    with pytest.raises(ValueError, match=r"`labels` has shape \(4,\) for 5 images"):
        audit(model, [images], action, labels=torch.zeros(4))
    with pytest.raises(ValueError, match="`names` has 1 entries for 5 images"):
        audit(model, [images], action, names=["x"])
    with pytest.raises(ValueError, match="names of equitune, equizero, got 'lambda'"):
        wrap(model, action, ["lambda"])
    images[3] = float("nan")
    with pytest.raises(ValueError, match="not finite for image 3 under e"):
        audit(model, images.split(2), action)


def test_preprocessing_is_that_of_timm(folder):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    model = timm.create_model("test_resnet", pretrained=False, num_classes=CLASSES)
    torch.save(model.state_dict(), "w.pt")
    save(folder / "image.png", noise(90, 120))
    with Image.open(folder / "image.png") as image:
        found = load_classifier("timm:test_resnet", "w.pt").preprocessing.convert(image)
        config = timm.data.resolve_model_data_config(model)
        assert torch.equal(found, timm.data.create_transform(**config)(image))


def test_folders_of_which_the_model_knows_some_only(folder, call, vit):
    """A misspelt class must not change the meaning of all the others."""
    (folder / "images" / "c").rename(folder / "images" / "cc")
    code, _, errors = call("--labels", model="transformers:vit")
    assert code == 2
    assert "for the model's classes a, b, but 'cc' is not one of them" in errors
    assert "near it: ['c']" in errors


def test_folders_that_are_numbers(folder, call):
    for old, new in (("a", "1"), ("b", "2"), ("c", "10")):
        (folder / "images" / old).rename(folder / "images" / new)
    code, _, errors = call("--labels")
    assert code == 2
    assert "sort as words in another order than as numbers; use leading zeros" in errors
    for old, new in (("1", "01"), ("2", "02")):
        (folder / "images" / old).rename(folder / "images" / new)
    assert call("--labels")[0] == 0


def test_folders_without_images(folder, call):
    (folder / "images" / "b0").mkdir()
    code, _, errors = call("--labels")
    assert code == 2
    assert "the folders b0 hold no images" in errors


@pytest.mark.parametrize(("text", "message"), [
    ("image,label\na/0.png,tench, Tinca tinca\n", "put names with a comma in quotes"),
    ("image,label,label\na/0.png,0,1\n", "it must have image,label, once each"),
    ("label,image\n1\n", "more or fewer cells than columns in line 2"),
    (b"image,label\n\xff\xfe,0\n", "cannot be read as a CSV file in UTF-8"),
], ids=["comma", "twice", "short", "encoding"])  # fmt: skip
def test_label_files_that_lose_something(folder, call, text, message):
    (folder / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    code, _, errors = call("--labels", "labels.csv")
    assert code == 2
    assert message in errors


def test_images_of_sixteen_bits(folder, call):
    pixels = torch.randint(0, 60_000, (SIDE, SIDE)).to(torch.int32)
    image = Image.frombytes("I;16", (SIDE, SIDE), pixels.to(torch.uint16).numpy().tobytes())
    image.save(folder / "images" / "a" / "9.png")
    code, _, errors = call()
    assert code == 2
    assert "a/9.png has more than 8 bits per pixel" in errors


def test_links_are_followed_once(folder):
    (folder / "linked").mkdir()
    (folder / "linked" / "a").symlink_to(folder / "images" / "a")
    (folder / "images" / "a" / "back").symlink_to(folder / "images")
    found = [str(path.relative_to(folder)) for path in find_images(folder / "linked")]
    assert "linked/a/0.png" in found
    assert len(found) < 20
    assert len(find_images(folder / "images")) >= 12


def test_a_broken_file_is_found_before_any_work(folder, call):
    (folder / "images" / "c" / "9.png").write_bytes(b"no image")
    code, printed, errors = call()
    assert code == 2
    assert printed == ""
    assert "c/9.png cannot be read as an image" in errors


def test_wrappers_without_finite_logits_agree_with_nothing():
    class Broken(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 3), math.nan)

    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    images = [torch.rand(4, 1, 8, 8)]
    with pytest.raises(ValueError, match=r"not finite for image 0 under e \(broken\)"):
        audit(linear, images, ImageAction(c4()), wrappers={"broken": Broken()})


def test_what_a_model_keeps_can_be_trained_with():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.kept = nn.Linear(64, 3), None

        def forward(self, x):
            if self.kept is None:
                self.kept = torch.ones(64)
            return self.head(x.flatten(1) * self.kept)

    model = Keeps()
    audit(model, [torch.rand(4, 1, 8, 8)], ImageAction(c4()))
    model(torch.rand(4, 1, 8, 8)).sum().backward()
    assert model.head.weight.grad is not None


def test_checkpoints_in_half_precision(folder, call, vit):
    vit.to(torch.bfloat16).save_pretrained("vit")
    found = load_classifier("transformers:vit")
    assert {p.dtype for p in found.module.parameters()} == {torch.float32}
    assert call(model="transformers:vit")[0] == 0


def test_a_report_that_is_a_folder(folder, call):
    code, printed, errors = call("--report", ".")
    assert (code, printed) == (2, "")
    assert "`report` must be a file in a folder that exists, got '.'" in errors
