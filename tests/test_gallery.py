"""The gallery: each script runs, draws, stays short and keeps to the public names."""

import ast
import os
import runpy
import sys
from pathlib import Path

import pytest

import equitune

matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
plt = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")

GALLERY = Path(__file__).resolve().parents[1] / "examples" / "gallery"
SCRIPTS = sorted(GALLERY.glob("*.py"))
LONGEST = 99  # lines of text and code

# What each topic is about: names that its script has to use.
TOPICS = {
    "agents": {"symmetrize", "check_symmetry"},
    "audit": {"audit", "models_table"},
    "boxes": {"BoxAction", "assert_equivariant"},
    "canonicalize": {"Canonicalize", "upright_loss"},
    "classification": {"EquiTune", "EquiZero"},
    "fewer_passes": {"Distinct", "Transversal"},
    "language": {"EqualityWords", "EquiLM"},
    "learned_weights": {"LambdaEquiTune", "weights_phase"},
    "memory": {"Checkpointed", "Accumulated"},
    "onnx": {"EquiZero", "InferenceSession"},
    "own_action": {"Action", "assert_action"},
    "own_runner": {"Runner", "Orbit"},
    "own_weighting": {"Weighting", "Symmetrized"},
    "point_clouds": {"SignedPermutationAction", "FiniteGroup"},
    "retrieval": {"UnitEmbeddings", "EquiTune"},
    "scan": {"EquiSeq2Seq", "EquiZeroSeq2Seq"},
    "segmentation": {"EquiTune", "assert_equivariant"},
    "testing": {"assert_equivariant", "equivariance_report"},
}
# These show more with real data, and say so where there are none.
WITH_DATA = ("audit", "classification", "language")


def path(topic):
    return GALLERY / f"plot_{topic}.py"


def used(source):
    """All names of a program: of variables, attributes, imports and arguments."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found |= {*node.name.split("."), node.asname or ""}
        elif isinstance(node, ast.ImportFrom):
            found |= {*(node.module or "").split(".")}
        elif isinstance(node, ast.arg | ast.keyword):
            found.add(node.arg or "")
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
    return found


def underscored(source):
    """Names that are not public; Python's own are, and so is the one for what is not needed."""
    return {
        name
        for name in used(source)
        if name.startswith("_") and name != "_" and not (name[:2] == name[-2:] == "__")
    }


def run(topic, monkeypatch, folder):
    """Runs a script, and returns its figures."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("TQDM_DISABLE", "1")
    matplotlib.use("Agg")
    with matplotlib.rc_context():
        runpy.run_path(str(path(topic)), run_name="__main__")
        return [plt.figure(number) for number in plt.get_fignums()]


def is_empty(figure, folder):
    figure.savefig(folder / "drawn.png")
    return plt.imread(folder / "drawn.png")[..., :3].std() < 0.02


@pytest.fixture
def no_figures():
    plt.close("all")
    yield
    plt.close("all")


def test_every_topic_has_a_script():
    assert [script.stem for script in SCRIPTS] == [f"plot_{topic}" for topic in TOPICS]


@pytest.mark.parametrize("topic", TOPICS)
def test_scripts_are_short_public_and_in_one_style(topic):
    source = path(topic).read_text(encoding="utf-8")
    title, rule, empty, *_ = ast.get_docstring(ast.parse(source)).splitlines()
    assert (rule, empty) == ("=" * len(title), "")
    assert source.count("\n# %%\n") >= 3
    assert sum(map(bool, map(str.strip, source.splitlines()))) <= LONGEST
    assert underscored(source) == set()
    assert TOPICS[topic] <= used(source)
    assert 'plt.style.use("equitune.viz.style")' in source


@pytest.mark.parametrize("topic", TOPICS)
def test_scripts_run(topic, monkeypatch, tmp_path, capsys, no_figures):
    monkeypatch.delenv("EQUITUNE_DATA", raising=False)
    figures = run(topic, monkeypatch, tmp_path)
    assert figures
    assert not any(is_empty(figure, tmp_path) for figure in figures)
    assert ("EQUITUNE_DATA is not set" in capsys.readouterr().out) == (topic in WITH_DATA)


@pytest.mark.skipif(
    not os.environ.get("EQUITUNE_DATA"), reason="EQUITUNE_DATA is not set: no data to run on"
)
@pytest.mark.parametrize("topic", WITH_DATA)
def test_scripts_run_on_real_data(topic, monkeypatch, tmp_path, capsys, no_figures):
    figures = run(topic, monkeypatch, tmp_path)
    assert figures
    assert not any(is_empty(figure, tmp_path) for figure in figures)
    assert "is not set" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "source",
    [
        "from equitune.viz._canvas import show",
        "import equitune._checks",
        "equitune._checks",
        "model._fast = None",
        "f(_x=1)",
        "def _f(): pass",
    ],
)
def test_underscored_names_are_noticed(source):
    assert underscored(source)


def test_public_names_are_not_taken_for_underscored_ones():
    assert underscored("for _ in range(3):\n    super().__init__()\n    a_b = c.d_e") == set()


def test_empty_figures_are_noticed(tmp_path, no_figures):
    figure, axes = plt.subplots()
    axes.set_axis_off()
    assert is_empty(figure, tmp_path)


def test_the_style_is_shipped():
    assert (Path(equitune.__file__).parent / "viz" / "style.mplstyle").is_file()
