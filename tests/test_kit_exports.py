"""Models of the kits in a graph, and those that cannot be in one."""

import pytest
import torch

from cases import AnyWeightNet
from equitune.seq2seq import Decoded, GreedyDecoder, SymmetrizedSeq2Seq
from equitune.text import OrbitLM
from equitune.weightings import Canonical
from kits import KITS
from lm_cases import WORDS, language_model, prompts
from seq2seq_cases import BOS, CASES, EOS, MAX_LENGTH, PAD, Plain

BATCH = torch.export.Dim("batch")
torch.export.register_dataclass(Decoded)
IN_GRAPHS = [k for k in KITS if k.name in ("Q-network", "DQN", "zero-shot classifier")]


@pytest.mark.parametrize("kit", IN_GRAPHS, ids=str)
def test_networks_and_classifiers(kit):
    model = kit.build(None).eval()
    program = torch.export.export(model, (kit.input[:3],), dynamic_shapes=({0: BATCH},))
    found = program.module()
    for size in (2, len(kit.input)):
        x = kit.input[:size]
        torch.testing.assert_close(kit.read(found(x)), kit.read(model(x)), rtol=1e-9, atol=1e-11)


@pytest.fixture
def decoder():
    """A decoder whose weighting chooses before it runs."""
    case = CASES["steps, cyclic(3)"]
    model = GreedyDecoder(Plain().double(), bos=BOS, eos=EOS, pad=PAD, max_length=MAX_LENGTH)
    weighting = Canonical(AnyWeightNet().double())
    return SymmetrizedSeq2Seq(model, case.source, case.tokens, weighting=weighting).eval()


def test_decoders_run_all_copies_in_a_graph(decoder):
    source = CASES["steps, cyclic(3)"].sources()
    shapes = {"x": {0: BATCH}, "kwargs": {"length": None}}
    program = torch.export.export(decoder, (source,), {"length": 4}, dynamic_shapes=shapes)
    for size in (2, len(source)):
        expected, found = [f(source[:size], length=4) for f in (decoder, program.module())]
        for field in ("tokens", "scores", "mask"):
            torch.testing.assert_close(getattr(found, field), getattr(expected, field))


def test_decoders_need_a_number_of_steps(decoder):
    with pytest.raises(ValueError, match=r"`length` must be given in torch.export, .* got None"):
        torch.export.export(decoder, (CASES["steps, cyclic(3)"].sources(),))


def test_language_models_are_refused():
    model = OrbitLM(language_model("gpt2"), next(iter(WORDS.values()))).eval()
    with pytest.raises(ValueError, match=r"`runner` must run passes of fixed sizes .* use unwrap"):
        torch.export.export(model, (prompts(4, 7),), {"use_cache": False})
