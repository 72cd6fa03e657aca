"""The notebooks run from top to bottom, at reduced settings, and what they say holds."""

import base64
import io
import os
import re
from pathlib import Path

import pytest
from PIL import Image, ImageStat

import equitune

nbformat = pytest.importorskip("nbformat", reason="nbformat reads notebooks")
nbclient = pytest.importorskip("nbclient", reason="nbclient executes notebooks")

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PICTURES = {
    "agents": 2,
    "cifar10": 7,
    "hymenoptera": 4,
    "is_my_model_equivariant": 2,
    "language_models": 4,
    "scan": 1,
}

# What must hold in the namespace of the executed notebook, and a claim that must not.
CLAIMS = {
    "agents": (
        """
assert right.passed
assert not wrong.passed
assert all(share == 1 for name in ("EquiTune", "EquiZero") for share in agreements[name])
assert agreement(symmetric) == 1
assert all(len(found) == len(SEEDS) for found in played.values())
""",
        'assert all(share == 1 for share in agreements["plain"])',
    ),
    "is_my_model_equivariant": (
        """
assert before[0] > 60 > before[1]
assert not report.passed
assert not cause.passed
assert len({round(accuracy(best, turns), 6) for turns in range(4)}) == 1
assert accuracy(best, 1) > accuracy(wrong, 1)
""",
        "assert_invariant(network, batch, action)",
    ),
    "scan": (
        """
assert exact
assert set(table) == {"plain", *models, "EquiSeq2Seq, fine-tuned"}
assert min(curve) == 0 and max(curve) == TUNING
""",
        "assert torch.equal(answers, moved)",
    ),
    "cifar10": (
        """
assert changed["plain"] > 0
assert all(count == 0 for name, count in changed.items() if name != "plain")
answers = {name: [values[name] for values in accuracy.values()] for name in models}
assert all(len(set(map(tuple, rows))) == 1 for name, rows in answers.items() if name != "plain")
assert len(set(map(tuple, answers["plain"]))) > 1
assert answers["plain"][0] > answers["plain"][1]
assert torch.equal(plain.conv1.weight, cifar10.load_resnet(folder).conv1.weight)
assert not torch.equal(tuned.backbone.conv1.weight, plain.conv1.weight)
assert explanations["LambdaEquiTune"].weights.sum(0).allclose(torch.ones(len(test_images)))
""",
        'assert changed["plain"] == 0',
    ),
    "hymenoptera": (
        """
assert set(changed["d4 equi-tuned"]) == {0}
assert all(count > 0 for count in changed["plain"])
rows = [values["d4 equi-tuned"] for values in accuracy.values()]
assert rows == rows[:1] * 4
assert len({tuple(values["plain"]) for values in accuracy.values()}) > 1
""",
        'assert set(changed["plain"]) == {0}',
    ),
    "language_models": (
        """
assert told["plain"][2] < STORIES
assert told["EquiLM"][2] == told["EquiZeroLM"][2] == STORIES
assert all(moods[name]["Tim"] == moods[name]["Lily"] for name in ("EquiLM", "EquiZeroLM"))
for name, bars in said["EquiLM"].items():
    mean = sum(bar[0] for bar in said["plain"][name].values()) / 2
    assert all(abs(bar[0] - mean) < 1e-6 for bar in bars.values())
assert all(bars["she"] > bars["he"] for bars in said["plain"].values())
assert max(ratios["plain"]) > 1.5
assert all(abs(ratio - 1) < 1e-4 for ratio in ratios["EquiLM"])
assert gaps["EquiLM"].max() <= 1e-5 < gaps["plain"].median()
assert all(of["EquiLM"] <= 1.05 * of["plain"] for of in perplexities.values())
assert abs(boys["EquiLM"] - boys["plain"]) < 1e-4 < abs(boys["plain"] - 1)
assert "shelp" in read(words.action.transform(tokens("Can you help her?"), 1))[0]
assert gap["REquiLM, his and her general"] > 1e-3 > gap["EquiLM, his and her neutral"]
assert difference.abs().max() < 1e-5
again = AutoModelForCausalLM.from_pretrained(folder / "weights" / "stories260k").state_dict()
assert all(torch.equal(weight, again[name]) for name, weight in plain.state_dict().items())
""",
        'assert told["plain"][2] == STORIES',
    ),
}


def read(name):
    return nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def pictures(notebook):
    """The pictures, and whether each has something on it."""
    found = []
    for output in outputs(notebook):
        if "image/png" in output.get("data", {}):
            picture = Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"])))
            found.append(picture.convert("L"))
    return found


def is_empty(picture):
    return min(picture.size) < 100 or ImageStat.Stat(picture).stddev[0] < 5


def complaints(notebook):
    """What must not stand in a stored notebook."""
    found = []
    for output in outputs(notebook):
        if output["output_type"] == "error":
            found.append(output["ename"])
        if output.get("name") == "stderr":
            found.append("stderr")
    if not outputs(notebook):
        found.append("nothing was executed")
    if any(is_empty(picture) for picture in pictures(notebook)):
        found.append("an empty picture")
    text = re.sub(r'"image/png": "[^"]*"', "", nbformat.writes(notebook))
    # Written in parts, so that this file does not name them either.
    banned = ["/" + "work/", "/" + "tmp/", "/" + "home/", "/" + "root/", "site-" + "packages"]
    return found + [word for word in banned if word in text]


@pytest.mark.skipif(
    not os.environ.get("EQUITUNE_DATA"), reason="EQUITUNE_DATA is not set: no data to run on"
)
@pytest.mark.parametrize("name", PICTURES)
def test_notebooks_run(name, monkeypatch):
    monkeypatch.setenv("EQUITUNE_QUICK", "1")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(equitune.__file__).parents[1]))
    notebook = read(name)
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(EXAMPLES)}}
    )
    claims, wrong = (nbformat.v4.new_code_cell(text) for text in CLAIMS[name])
    with client.setup_kernel():
        for number, cell in enumerate(notebook.cells):
            client.execute_cell(cell, number)
        notebook.cells += [claims, wrong]
        client.execute_cell(claims, len(notebook.cells) - 2)
        with pytest.raises(nbclient.exceptions.CellExecutionError, match="AssertionError"):
            client.execute_cell(wrong, len(notebook.cells) - 1)
    drawn = pictures(notebook)
    assert len(drawn) == PICTURES[name]
    assert not any(is_empty(picture) for picture in drawn)


@pytest.mark.parametrize("name", PICTURES)
def test_stored_notebooks_are_executed_and_clean(name):
    notebook = read(name)
    assert complaints(notebook) == []
    assert len(pictures(notebook)) == PICTURES[name]
    assert (EXAMPLES / f"{name}.ipynb").stat().st_size < 600_000
    # In order, from the top.
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        ({"output_type": "error", "ename": "KeyError", "evalue": "", "traceback": []}, "KeyError"),
        ({"output_type": "stream", "name": "stderr", "text": "50%"}, "stderr"),
        ({"output_type": "stream", "name": "stdout", "text": "/" + "home/me/x"}, "/" + "home/"),
        (None, "nothing was executed"),
    ],
)
def test_unclean_notebooks_are_noticed(output, complaint):
    cell = nbformat.v4.new_code_cell("1")
    cell.outputs = [] if output is None else [nbformat.from_dict(output)]
    assert complaints(nbformat.v4.new_notebook(cells=[cell])) == [complaint]


@pytest.mark.parametrize(
    ("picture", "empty"),
    [
        (Image.new("L", (200, 200), 255), True),
        (Image.linear_gradient("L").resize((50, 50)), True),
        (Image.linear_gradient("L"), False),
    ],
)
def test_empty_pictures_are_noticed(picture, empty):
    assert is_empty(picture) == empty
