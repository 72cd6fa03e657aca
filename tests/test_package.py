"""The package as a whole: what it imports, its layers, its sizes, its public names."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import equitune

SOURCE = Path(equitune.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
LAYERS = (
    "groups",
    "actions",
    "functional",
    "spaces",
    "weightings",
    "runners",
    "wrappers",
    "losses",
    "weight_nets",
    "heads",
    "training",
    "testing",
    "audit",
    "vision",
    "text",
    "seq2seq",
    "rl",
    "viz",
    "distributed",
)
# Below the wrappers, the later layers are beside each other.
RANK = {
    "_checks": -1,
    "_extras": -1,
    "_modes": -1,
    "groups": 0,
    "actions": 1,
    "functional": 2,
    "_submodules": 2,
    "spaces": 2.2,
    "weightings": 2.4,
    "runners": 2.6,
    "wrappers": 3,
    "losses": 4,
    "weight_nets": 4,
    "heads": 4,
    "training": 5,
    "scaling": 5,
    "testing": 5,
    "audit": 5,
    "vision": 5,
    "text": 5,
    "seq2seq": 5,
    "rl": 5,
    "viz": 5,
    "distributed": 5,
}


def test_the_core_needs_torch_alone():
    program = (
        "import sys, torch; before = set(sys.modules); import equitune, equitune.testing, "
        "equitune.losses, equitune.weight_nets, equitune.audit, equitune.audit._command, "
        "equitune.vision, equitune.viz, equitune.seq2seq; "
        "new = set(sys.modules) - before; "
        "print(sorted({name.split('.')[0] for name in new}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    extras = {"torchvision", "transformers", "timm", "numpy", "matplotlib", "hypothesis", "sklearn",
              "tqdm", "PIL", "safetensors", "pytest", "open_clip", "gymnasium",
              "stable_baselines3"}  # fmt: skip
    assert "equitune" in done.stdout
    assert not extras & set(ast.literal_eval(done.stdout))


# Modules with an underscore are not for users, and are named in their own doctests only.
NAMES = re.compile(r"(?<![\w/.-])equitune(?:\.[A-Za-z]\w*)+(?!\.?\w)")
# What is looked for in the documentation is what stands in the source.
PAGES = [
    page
    for page in (SOURCE.parents[1] / "docs").rglob("*.*")
    if page.suffix in {".md", ".rst"} and not {"_build", "gallery", "generated"} & set(page.parts)
]


def dotted_names():
    """Every name with ``equitune.`` in a message, a docstring or a page, and where it stands."""
    found = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.update(dict.fromkeys(NAMES.findall(node.value), path))
    for path in [SOURCE.parents[1] / "README.md", *PAGES]:
        found.update(dict.fromkeys(NAMES.findall(path.read_text()), path))
    # A style sheet, which matplotlib finds by its place in the package.
    found.pop("equitune.viz.style", None)
    return found


def unresolved(names):
    """Those of some names that nothing more than ``import equitune`` leads to."""
    program = (
        "import sys, functools, equitune\n"
        "for name in sys.argv[1:]:\n"
        "    try: functools.reduce(getattr, name.split('.')[1:], equitune)\n"
        "    except AttributeError: print(name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *names], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_dotted_names_in_messages_and_docs_can_be_written_as_they_stand():
    names = dotted_names()
    assert {"equitune.losses.entropy", "equitune.testing.strategies"} <= set(names)
    assert not {name: names[name] for name in unresolved(names)}
    assert unresolved(["equitune.losses.entropie", "equitune.loss"]) == [
        "equitune.losses.entropie",
        "equitune.loss",
    ]


def test_other_names_of_the_package_are_attribute_errors():
    assert not hasattr(equitune, "loss")
    assert not hasattr(equitune.testing, "strategy")


def layer_of(name):
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else None


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_downwards(path):
    own = path.relative_to(SOURCE).with_suffix("").parts[0]
    if own == "__init__":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("equitune."):
            other = layer_of(node.module)
            assert other == own or RANK[other] < RANK[own], f"{own} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_stay_short_and_have_no_user_facing_asserts(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    tree = ast.parse(text)
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert ast.get_docstring(tree)


def code_lines(text):
    """Lines that hold code, without docstrings, comments and blanks."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef
        if isinstance(node, kinds) and ast.get_docstring(node):
            node.body.pop(0)
    return sum(1 for line in ast.unparse(tree).splitlines() if line.strip())


def test_the_core_stays_small():
    """Lines of code of all that a wrapper imports, in the most that there are today."""
    core = {*LAYERS[: LAYERS.index("wrappers") + 1], "_checks", "_modes", "_submodules"}
    files = [p for p in FILES if p.relative_to(SOURCE).parts[0].removesuffix(".py") in core]
    assert sum(code_lines(path.read_text()) for path in files) <= 2885


IDIOM = re.compile(r"\b(?:is|are) no\b|\bshall\b|; give |is a \{type|are a \{type")


def test_the_english_stays_plain():
    """Phrases that read as translated, of which a few may be meant."""
    found = [f"{path.name}: {match}" for path in FILES for match in IDIOM.findall(path.read_text())]
    assert len(found) <= 12, found
    assert IDIOM.findall("x is no tensor; give one, which shall be a tensor; x is a {type(x)}")


def concrete_actions():
    """The names of all subclasses of Action, but for the base classes that users know."""
    found, todo = set(), [equitune.Action]
    for package in ("vision", "rl", "text", "seq2seq"):
        importlib.import_module(f"equitune.{package}")
    while todo:
        kinds = [k for k in todo.pop().__subclasses__() if k.__module__.startswith("equitune")]
        found |= {kind.__name__ for kind in kinds}
        todo += kinds
    return found


def kinds_asked_for(text, kinds):
    """Tests of the kind of a concrete action, by isinstance or by match."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance"
            and kinds & {getattr(x, "id", getattr(x, "attr", "")) for x in ast.walk(node.args[1])})
        or (isinstance(node, ast.MatchClass) and getattr(node.cls, "id", "") in kinds)
    ]  # fmt: skip


def test_nobody_asks_which_kind_an_action_is():
    pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed")
    kinds = concrete_actions()
    assert {"ImageAction", "TreeAction", "BoxAction"} <= kinds
    for path in FILES:
        text = path.read_text()
        defines = {
            node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)
        }
        if not defines & kinds:
            assert not kinds_asked_for(text, kinds), path
    assert kinds_asked_for("isinstance(a, equitune.ImageAction)", kinds) == [1]


def test_public_names_exist_and_are_documented():
    modules = [m.name for m in pkgutil.walk_packages([str(SOURCE)], "equitune.")]
    assert {f"equitune.{layer}" for layer in LAYERS} <= set(modules)
    for name in ["equitune", *modules]:
        module = importlib.import_module(name)
        private = name.rpartition(".")[2].startswith("_")
        names = getattr(module, "__all__", []) if private else module.__all__
        assert len(set(names)) == len(names)
        for public in names:
            assert (getattr(module, public).__doc__ or "").strip(), f"{name}.{public}"


def test_the_repository_speaks_of_the_project_alone():
    root = SOURCE.parents[1]
    done = subprocess.run(
        ["git", "ls-files"], cwd=root, capture_output=True, text=True, check=False
    )
    tracked = [root / name for name in done.stdout.splitlines()] or FILES
    # Written in parts, so that this file does not name them either.
    banned = ["/" + "work/", "/" + "tmp/w", "py" + "pi.org", "python" + "hosted", "npm" + "js"]
    for path in tracked:
        if (
            path.suffix in {".py", ".md", ".toml", ".json", ".rst", ".cff", ".yaml", ""}
            and path.is_file()
        ):
            text = path.read_text()
            assert not [word for word in banned if word in text], path
