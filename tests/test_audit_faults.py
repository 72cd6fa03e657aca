"""The audit where something goes wrong: no fault passes the gate, runs code or drops an image."""

# ruff: noqa: F401, F811 - fixtures are imported.

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from torch import nn

from audit_cases import SIDE, call, folder, noise, rows_of, save
from equitune.audit import find_images, load_classifier, read_batches
from equitune.audit._command import main
from equitune.audit._images import check_images, plain_preprocessing, read_image
from equitune.audit._labels import class_folders
from equitune.audit._progress import terminating

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


@pytest.fixture
def unused(folder):
    """A model that leaves a file where it is made, for faults that are found before."""
    code = "open('made', 'w').close()\nfrom nets import linear\n"
    (folder / "code" / "marks.py").write_text(code)
    yield "code/marks.py:linear"
    assert not (folder / "made").exists()


# Code that comes with weights


@pytest.fixture
def remote(folder):
    """A folder as transformers saves it, with code of its own that leaves a file when it is run."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=SIDE, patch_size=4, num_labels=3,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    model.save_pretrained("vit")
    size = {"height": SIDE, "width": SIDE}
    transformers.ViTImageProcessor(size=size).save_pretrained("vit")
    torch.save(model.state_dict(), "w.pt")
    (folder / "vit" / "own.py").write_text(
        f"open({str(folder / 'ran')!r}, 'w').close()\n"
        "from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor\n"
        "class OwnConfig(ViTConfig):\n    model_type = 'own'\n"
        "class Own(ViTForImageClassification):\n    config_class = OwnConfig\n"
        "class OwnProcessor(ViTImageProcessor):\n    pass\n"
    )
    return folder


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


REFERENCES = {
    "config": {"model_type": "own", "auto_map": {
        "AutoConfig": "own.OwnConfig", "AutoModelForImageClassification": "own.Own"}},
    "model": {"auto_map": {"AutoModelForImageClassification": "own.Own"}},
    "processor": {"auto_map": {"AutoImageProcessor": "own.OwnProcessor"},
                  "image_processor_type": "OwnProcessor"},
}  # fmt: skip


@pytest.mark.parametrize("weights", [None, "w.pt"])
@pytest.mark.parametrize("what", REFERENCES)
def test_code_that_comes_with_weights_is_not_run(remote, call, monkeypatch, what, weights):
    """Nor is anybody asked, whatever stands in the standard input."""
    name = "preprocessor_config.json" if what == "processor" else "config.json"
    if not (remote / "vit" / name).exists():
        name = "processor_config.json"
    change_json(remote / "vit" / name, **REFERENCES[what])
    answers = io.StringIO("y\n" * 100)
    monkeypatch.setattr(sys, "stdin", answers)
    code, printed, errors = call(
        *([] if weights is None else ["--weights", weights]), model="transformers:vit"
    )
    assert not (remote / "ran").exists()
    assert answers.tell() == 0
    assert "[y/N]" not in printed + errors
    if what == "model":
        # transformers has code for this one itself.
        assert code == 0
    else:
        assert code == 2
        assert "code that comes with weights is not run, got 'vit'" in errors
        assert "use path/to/file.py:callable" in errors


def test_the_code_would_run_if_it_were_trusted(remote, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    change_json(remote / "vit" / "config.json", **REFERENCES["config"])
    before = list(sys.path)
    try:
        transformers.AutoModelForImageClassification.from_pretrained("vit", trust_remote_code=True)
    finally:
        sys.path[:] = before
    assert (remote / "ran").exists()


# The gate


ENDS = {
    "import": "import sys\nsys.exit(0)\n",
    "construction": "import sys\ndef make():\n    sys.exit(0)\n",
    "loading": (
        "import sys\nfrom torch import nn\nclass make(nn.Linear):\n"
        "    def __init__(self):\n        super().__init__(2, 2)\n"
        "    def load_state_dict(self, *a, **k):\n        sys.exit(0)\n"
    ),
    "eval": (
        "import sys\nfrom torch import nn\nclass make(nn.Flatten):\n"
        "    def eval(self):\n        sys.exit(0)\n"
    ),
    "forward": (
        "import sys\nfrom torch import nn\nclass make(nn.Flatten):\n"
        "    def forward(self, x):\n        sys.exit(0)\n"
    ),
    "last forward": (
        "import sys\nfrom torch import nn\nclass make(nn.Flatten):\n    calls = 0\n"
        "    def forward(self, x):\n        self.calls += 1\n"
        "        if self.calls == 5:\n            sys.exit(0)\n"
        "        return super().forward(x)[:, :3]\n"
    ),
    "quit": "quit()\n",
    "no message": "raise SystemExit\n",
    "arguments": "import argparse\nargparse.ArgumentParser().parse_args(['--help'])\n",
    "base": "class Stop(BaseException):\n    pass\nraise Stop\n",
}


@pytest.mark.parametrize("place", ENDS)
def test_who_ends_the_process_does_not_pass(folder, call, place):
    (folder / "code" / "ends.py").write_text(ENDS[place])
    torch.save(nn.Linear(2, 2).state_dict(), "w.pt")
    options = ["--weights", "w.pt"] if place == "loading" else []
    code, _, errors = call(
        "--max-disagreement", "1", "--wrappers", *options, model="code/ends.py:make"
    )
    assert code == 3
    name = "Stop" if place == "base" else "SystemExit"
    assert f"equitune audit: error: {name} while " in errors
    assert "Traceback" in errors
    assert not (folder / "equitune-audit.html").exists()


def test_a_process_does_not_pass_either(folder):
    (folder / "code" / "ends.py").write_text(ENDS["forward"])
    done = run(folder, "--model", "code/ends.py:make", "--max-disagreement", "1")
    assert done.returncode == 3


def run(folder, *options):
    source = Path(__file__).resolve().parents[1] / "src"
    program = "import sys\nfrom equitune.audit._command import main\nsys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", program, "audit", "--images", "images", "--group", "c4", *options],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True, text=True, check=False, cwd=folder, stdin=subprocess.DEVNULL,
    )  # fmt: skip


# Images that cannot be found or read


@posix
def test_folders_that_cannot_be_read(folder):
    closed = folder / "images" / "b" / "inner"
    save(closed / "9.png", noise())
    closed.chmod(0)
    folder.chmod(0o755)
    root = os.geteuid() == 0
    if root:
        # Permissions do not bind root.
        os.seteuid(65534)
    try:
        with pytest.raises(ValueError, match=r"the folder 'images/b/inner' \(Permission denied\)"):
            find_images(Path("images"))
    finally:
        if root:
            os.seteuid(0)
        closed.chmod(0o755)
    assert len(find_images(Path("images"))) == 13


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("b/9.png", "nowhere.png"),
        ("b/inner", "nowhere"),
        ("b/loop", "loop"),
        ("b/loop.png", "loop.png"),
        ("d", "../nowhere"),
        ("b/under", "0.png/under"),
    ],
)
def test_links_that_lead_nowhere(folder, call, unused, place, target):
    (folder / "images" / place).symlink_to(target)
    for labels in ([], ["--labels"]):
        code, printed, errors = call(*labels, model=unused)
        assert (code, printed) == (2, "")
        assert f"the link 'images/{place}'" in errors
        assert "mend or remove it" in errors


@posix
def test_pipes_with_the_name_of_an_image(folder, call, unused):
    """Opening one would wait for ever."""
    os.mkfifo(folder / "images" / "b" / "9.png")
    code, printed, errors = call(model=unused)
    assert (code, printed) == (2, "")
    assert "'images/b/9.png', which has the name of an image and is a pipe" in errors


def test_what_is_hidden_or_no_image_is_passed_over(folder):
    (folder / "images" / ".link").symlink_to("nowhere")
    (folder / "images" / "notes.txt").write_text("no image")
    (folder / "images" / "linked.txt").symlink_to("notes.txt")
    assert len(find_images(folder / "images")) == 12


def test_linked_folders_inside_of_class_folders(folder, call, unused):
    save(folder / "more" / "9.png", noise())
    (folder / "images" / "b" / "deep").mkdir()
    for place in ("b/linked", "b/deep/linked"):
        link = folder / "images" / place
        link.symlink_to(folder / "more")
        code, printed, errors = call("--labels", model=unused)
        assert (code, printed) == (2, "")
        assert f"'images/{place}' inside of 'b' is a link to '{folder / 'more'}'" in errors
        # Without labels nothing is ambiguous: it is followed.
        assert len(find_images(folder / "images")) == 13
        link.unlink()
    # To another class, which would make an image two.
    (folder / "images" / "b" / "linked").symlink_to(folder / "images" / "a")
    assert call("--labels", model=unused)[0] == 2


def test_class_folders_may_be_links_themselves(folder, call):
    (folder / "images" / "c").rename(folder / "elsewhere")
    (folder / "images" / "c").symlink_to(folder / "elsewhere")
    paths = find_images(folder / "images")
    assert class_folders(folder / "images", paths) == ["a", "b", "c"]
    assert "images    12\n" in call("--labels")[1]


@pytest.mark.parametrize("labels", ["folders", "none.csv", "short.csv"])
def test_labels_are_checked_before_the_model_is_made(folder, call, unused, labels):
    (folder / "short.csv").write_text("image,label\na/0.png,0\n")
    save(folder / "images" / "loose.png", noise())
    options = ["--labels"] if labels == "folders" else ["--labels", labels]
    code, printed, errors = call(*options, model=unused)
    assert (code, printed) == (2, "")
    assert "label" in errors


def encoded(kind):
    file = io.BytesIO()
    pixels = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8)
    Image.frombytes("RGB", (64, 64), pixels.numpy().tobytes()).save(file, kind)
    return file.getvalue()


KINDS = {"jpeg": "jpg", "png": "png", "bmp": "bmp", "webp": "webp"}


@pytest.mark.parametrize("filling", [False, True], ids=["", "filled with grey"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_truncated_images(folder, call, unused, monkeypatch, kind, share, filling):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", filling)
    whole = encoded(kind)
    path = folder / "images" / "b" / f"9.{KINDS[kind]}"
    path.write_bytes(whole)
    check_images([path])
    path.write_bytes(whole[: int(len(whole) * share)])
    code, printed, errors = call("--size", "8", model=unused)
    assert (code, printed) == (2, "")
    assert f"b/9.{KINDS[kind]} cannot be read as an image" in errors
    # Also where batches are read without a check.
    with pytest.raises(ValueError, match="cannot be read as an image"):
        list(read_batches([path], plain_preprocessing(), 1))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is filling


@pytest.mark.parametrize("kind", KINDS)
def test_broken_images_have_one_error(tmp_path, kind):
    whole, path, preprocessing = encoded(kind), tmp_path / f"x.{KINDS[kind]}", plain_preprocessing()

    @settings(suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=8))
    def check(changes):
        data = bytearray(whole)
        for place, value in changes:
            data[place % len(data)] = value
        path.write_bytes(data)
        with contextlib.suppress(ValueError):
            check_images([path])
            read_image(path, preprocessing)

    check()


def test_deep_images_are_found_before_any_work(folder, call, unused):
    pixels = torch.randint(0, 60_000, (SIDE, SIDE)).to(torch.uint16)
    image = Image.frombytes("I;16", (SIDE, SIDE), pixels.numpy().tobytes())
    image.save(folder / "images" / "c" / "9.png")
    code, printed, errors = call(model=unused)
    assert (code, printed) == (2, "")
    assert "c/9.png has more than 8 bits" in errors


# Weights and numbers


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_broken_folders_of_transformers(folder, call, name):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=SIDE, patch_size=4, num_labels=3,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained("vit")
    path = folder / "vit" / name
    path.write_bytes(path.read_bytes()[:100])
    code, printed, errors = call(model="transformers:vit")
    assert (code, printed) == (2, "")
    assert "equitune audit: error: " in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("data", [b"", b"no weights", b"PK\x03\x04 no archive"])
def test_broken_weights_of_torchvision(folder, call, monkeypatch, data):
    """Where torchvision keeps what it has downloaded."""
    models = pytest.importorskip("torchvision.models")
    monkeypatch.setenv("TORCH_HOME", str(folder / "home"))
    kept = folder / "home" / "hub" / "checkpoints"
    kept.mkdir(parents=True)
    weights = models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    (kept / weights.url.split("/")[-1]).write_bytes(data)
    code, _, errors = call("--weights", "DEFAULT", model="torchvision:squeezenet1_1")
    assert code == 2
    assert "torchvision cannot load 'squeezenet1_1'" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("ending", ["pt", "pth", "safetensors"])
def test_weights_that_are_cut_off(folder, call, ending):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    path = folder / f"w.{ending}"
    if ending == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    whole = path.read_bytes()
    for length in (0, 1, 9, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        code, _, errors = call("--weights", path.name)
        assert code == 2
        assert f"{path.name} cannot be read as " in errors
        assert "Traceback" not in errors


@pytest.mark.parametrize("value", ["inf", "nan", "1e39", "x"])
@pytest.mark.parametrize("option", ["--mean", "--std"])
def test_numbers_that_are_not_finite(folder, call, unused, option, value):
    code, printed, errors = call(option, "0.5", value, "0.5", model=unused)
    assert (code, printed) == (2, "")
    assert f"argument {option}: " in errors
    assert "must be finite numbers, got " in errors


@pytest.mark.parametrize("value", ["0", "-1", "1e-50"])
def test_deviations_that_are_not_positive(folder, call, unused, value):
    code, printed, errors = call("--std", "1", value, "1", model=unused)
    assert (code, printed) == (2, "")
    assert "three positive numbers" in errors


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize(
    "wrong", [(0.5, float("inf"), 0.5), (float("nan"),) * 3, (1, 1), (1e39,) * 3]
)
def test_numbers_from_python(tmp_path, name, wrong):
    (tmp_path / "identity.py").write_text("from torch.nn import Identity")
    spec = f"{tmp_path / 'identity.py'}:Identity"
    with pytest.raises(ValueError, match=f"`{name}` must be three (positive )?numbers, for red"):
        load_classifier(spec, **{name: wrong})
    with pytest.raises(TypeError, match=f"`{name}` must be three (positive )?numbers, got"):
        load_classifier(spec, **{name: 0.5})
    with pytest.raises(TypeError, match=f"`{name}` must be three (positive )?numbers, got"):
        load_classifier(spec, **{name: ("a", "b", "c")})


def test_a_device_without_memory(folder, call, unused):
    code, printed, errors = call("--device", "meta", model=unused)
    assert (code, printed) == (2, "")
    assert "'meta' cannot be used" in errors


# The report


def test_a_full_disk_keeps_the_old_report(folder, call):
    resource = pytest.importorskip("resource")
    report = folder / "audit.html"
    report.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A file may have 1000 bytes: writing fails midway.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        code, printed, errors = call("--report", "audit.html")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2
    assert "File too large" in errors
    assert "report:" not in printed
    assert report.read_text() == "old"
    assert not list(folder.glob(".*"))
    assert call("--report", "audit.html")[0] == 0
    assert report.read_text().endswith("</html>\n")


def test_a_report_that_cannot_be_written_is_found_before_any_work(folder, call, unused):
    (folder / "dangling.html").symlink_to(folder / "none" / "audit.html")
    for path in ("dangling.html", "none/audit.html", ".", "code/nets.py/audit.html"):
        code, printed, errors = call("--report", path, model=unused)
        assert (code, printed) == (2, "")
        assert f"`report` must be a file in a folder that exists, got {path!r}" in errors


@posix
def test_a_folder_that_must_not_be_written_to(folder, call, unused):
    (folder / "closed").mkdir()
    (folder / "closed").chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        code, printed, errors = call("--report", "closed/audit.html", model=unused)
    finally:
        if root:
            os.seteuid(0)
    assert (code, printed) == (2, "")
    assert (
        "must be a file that can be written, got 'closed/audit.html' (Permission denied)" in errors
    )


@posix
def test_a_report_may_go_to_a_device(folder, call):
    assert call("--report", os.devnull)[0] == 0
    assert not Path(os.devnull).is_file()


# Interrupts


INTERRUPTS = """
import os, signal
from torch import nn

class Interrupts(nn.Module):
    calls = 0

    def __init__(self):
        super().__init__()
        self.inner = nn.Flatten()

    def forward(self, x):
        type(self).calls += 1
        if self.calls == AT:
            os.kill(os.getpid(), signal.SIGNAL)
        return self.inner(x)[:, :3]
"""


@pytest.fixture
def _interruptible():
    """Shells start background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@posix
@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("old", [None, "old"])
def test_interrupts_say_what_was_done(folder, call, name, code, old):
    source = INTERRUPTS.replace("AT", "7").replace("SIGNAL", name)
    (folder / "code" / "interrupts.py").write_text(source)
    report = folder / "equitune-audit.html"
    if old is not None:
        report.write_text(old)
    before = signal.getsignal(signal.SIGTERM)
    found, printed, errors = call(
        "--max-disagreement", "1", "--wrappers", "--batch-size", "3",
        model="code/interrupts.py:Interrupts",
    )  # fmt: skip
    assert found == code
    # One call counts the classes; then four elements for each batch of three.
    assert "interrupted while running the models on all copies, 15 of 48 done; " in errors
    assert errors.rstrip().endswith(
        "no report was written" if old is None else "the report of an earlier run is unchanged"
    )
    assert "report:" not in printed
    assert (report.read_text() if report.exists() else None) == old
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    assert signal.getsignal(signal.SIGTERM) is before


@posix
@pytest.mark.parametrize(
    ("patched", "words"),
    [
        ("find_images", "while starting; no report was written"),
        ("load_classifier", "while loading the model; no report was written"),
        ("render_report", "while writing the report; no report was written"),
        ("_gate", "while writing the report; the report is complete"),
    ],
)
def test_interrupts_between_the_stages(folder, call, monkeypatch, patched, words):
    def interrupt(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(f"equitune.audit._command.{patched}", interrupt)
    code, _, errors = call()
    assert code == 143
    assert f"equitune audit: interrupted {words}\n" in errors
    assert (folder / "equitune-audit.html").exists() == words.endswith("complete")


@posix
def test_a_killed_audit_leaves_the_old_report(folder):
    source = INTERRUPTS.replace("AT", "7").replace("SIGNAL", "SIGKILL")
    (folder / "code" / "interrupts.py").write_text(source)
    (folder / "equitune-audit.html").write_text("old")
    done = run(folder, "--model", "code/interrupts.py:Interrupts", "--wrappers", "--limit", "8",
               "--batch-size", "2")  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert (folder / "equitune-audit.html").read_text() == "old"


@posix
def test_other_threads_leave_signals_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def enter():
        with terminating():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


@posix
@pytest.mark.parametrize("reader", ["a full disk", "a reader that has gone"])
def test_what_nobody_can_read_does_not_cost_the_report(folder, reader):
    full = Path("/dev/full")
    if reader == "a full disk" and not full.exists():
        pytest.skip("there is no /dev/full")
    start = "import sys; from equitune.audit._command import main; sys.exit(main())"
    command = [sys.executable, "-c", start, "audit", "--model", "code/nets.py:linear",
               "--images", "images", "--group", "c4"]  # fmt: skip
    read, write = os.pipe()
    os.close(read)
    with full.open("w") if reader == "a full disk" else os.fdopen(write, "w") as output:
        done = subprocess.run(
            command, stdout=output, stderr=subprocess.PIPE, text=True, check=False, cwd=folder
        )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    assert "</html>" in (folder / "equitune-audit.html").read_text()
