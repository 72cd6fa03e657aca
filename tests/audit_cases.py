"""What the tests of the audit share: a folder of images, models beside it, and the command."""

import re

import pytest
import torch
from PIL import Image

from equitune.audit import find_images
from equitune.audit._command import main

SIDE, CLASSES = 8, 3
CODE = '''
import torch
from torch import nn


def linear():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))


class Extremes(nn.Module):
    """Exactly invariant: of every channel the largest and the smallest pixel."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.cat([x.amax((-2, -1)), x.amin((-2, -1))], dim=1))


class HalfTurn(nn.Module):
    """Exactly invariant to the half turn, and to nothing else."""

    def __init__(self):
        super().__init__()
        self.inner = linear()

    def forward(self, x):
        return self.inner(x + x.flip((-2, -1)))


class Contrast(nn.Module):
    """Divides by zero for images of one colour."""

    def forward(self, x):
        return x.mean((-2, -1)) / x.std((-3, -2, -1), correction=0, keepdim=True)[:, 0, 0]


class Dense(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 3, 1)


class Nothing(nn.Module):
    def forward(self, x):
        return {"logits": x}


def brightness():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 1))


def no_module():
    return 1


number = 1
'''


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = pixels.shape[:2]
    Image.frombytes("RGB", (width, height), bytes(pixels.flatten().tolist())).save(path)


def noise(height=SIDE, width=SIDE):
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)


def normalised(path):
    """An image as a local model reads it, by other means."""
    pixels = torch.tensor(list(Image.open(path).convert("RGB").tobytes())).view(SIDE, SIDE, 3)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((pixels / 255 - mean) / std).permute(2, 0, 1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder: code/nets.py, and images/ with four of each of the classes a, b and c."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "nets.py").write_text(CODE)
    for name in "abc":
        for i in range(4):
            save(tmp_path / "images" / name / f"{i}.png", noise())
    return tmp_path


@pytest.fixture
def call(capsys):
    """Runs the command; returns the exit code, what it printed and its complaints."""

    def call(*options, model="linear", group="c4"):
        name = model if ":" in model else f"code/nets.py:{model}"
        arguments = ["audit", "--model", name, "--images", "images", "--group", group, *options]
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def rows_of(printed):
    """The cells of the printed tables: {(model, element): cells}, {model: cells}."""
    elements, models = (
        [re.split(r"\s{2,}", line) for line in table.splitlines()[1:]]
        for table in printed.split("\n\n")[1:3]
    )
    return {tuple(row[:2]): row[2:] for row in elements}, {row[0]: row[1:] for row in models}


def images_of(folder):
    return torch.stack([normalised(path) for path in find_images(folder / "images")])
