"""Small encoder-decoders, groups, and the formulas that the symmetrised ones are held to."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from equitune import ImageAction, TokenAction, c4, cyclic, d4, symmetric
from equitune.actions import Action, TrivialAction
from equitune.seq2seq import Decoded, GreedyDecoder

WORDS, TOKENS, MAX_LENGTH = 11, 9, 12
PAD, BOS, EOS = 0, 1, 2
EXACT = {"rtol": 0, "atol": 1e-12}


def wide(model, seed=0):
    """A random model in eval mode, far from equivariant: its parameters are not small."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter.normal_(std=0.6, generator=generator)
    return model.eval()


class Steps(nn.Module):
    """A GRU that only knows how to go one step further."""

    def __init__(self, size=12):
        super().__init__()
        self.words, self.tokens = nn.Embedding(WORDS, size), nn.Embedding(TOKENS, size)
        self.encoder = nn.GRU(size, size, batch_first=True)
        self.cell, self.scores = nn.GRUCell(size, size), nn.Linear(size, TOKENS)
        self.summary = nn.Linear(size, size)

    def encode(self, source):
        return self.summary(self.encoder(self.words(source))[1][0])

    def step(self, tokens, state):
        state = self.cell(self.tokens(tokens), state)
        return 2 * self.scores(state), state


class Plain(nn.Module):
    """An encoder-decoder without recurrent layers of torch, which cannot be traced."""

    def __init__(self):
        super().__init__()
        self.words, self.tokens = nn.Embedding(WORDS, 8), nn.Embedding(TOKENS, 8)
        self.mixed, self.scores = nn.Linear(16, 8), nn.Linear(8, TOKENS)

    def encode(self, source):
        return self.words(source).mean(1)

    def step(self, tokens, state):
        state = torch.tanh(self.mixed(torch.cat([state, self.tokens(tokens)], -1)))
        return self.scores(state), state


class Runs(Steps):
    """The same kind of model, which does known steps in one pass, and reads a mask."""

    def __init__(self, size=12):
        super().__init__(size)
        self.decoder = nn.GRU(size, size, batch_first=True)
        self.passes = 0

    def encode(self, source, mask=None):
        seen = self.words(source)
        seen = seen if mask is None else seen * mask[..., None]
        return {"hidden": self.encoder(seen)[1]}

    def steps(self, tokens, state):
        self.passes += 1
        seen, hidden = self.decoder(self.tokens(tokens), state["hidden"])
        return 2 * self.scores(seen), {"hidden": hidden}

    def step(self, tokens, state):
        scores, state = self.steps(tokens[:, None], state)
        return scores[:, 0], state


class Captions(Steps):
    """Words for images of any height and width, which knows where they are."""

    def __init__(self, size=12):
        super().__init__(size)
        self.look = nn.Conv2d(3, size, 3, padding=1)

    def encode(self, source):
        seen = torch.tanh(self.look(source))
        rows = torch.linspace(0, 1, seen.shape[-2], dtype=seen.dtype)
        columns = torch.linspace(0, 2, seen.shape[-1], dtype=seen.dtype)
        return (seen * torch.sin(3 * rows[:, None] + columns)).sum((-2, -1))


def permuting(group, moved, size):
    """Permutations of a few ids, as the group permutes 0, 1, 2, ..."""
    table = torch.arange(size).repeat(group.order, 1)
    for g, name in enumerate(group.names):
        for i, j in enumerate(name):
            table[g, moved[i]] = moved[int(j)]
    return TokenAction(group, table)


@dataclass(frozen=True)
class Case:
    """An encoder-decoder, how a group acts on its sources and tokens, and sources."""

    model: type[nn.Module]
    source: Action
    tokens: TokenAction
    options: Any = None

    def decoder(self, seed=0):
        model = wide(self.model(), seed)
        # Random models end sequences too rarely.
        model.scores.bias.data[EOS] = 1.5
        return GreedyDecoder(model, bos=BOS, eos=EOS, pad=PAD, max_length=MAX_LENGTH)

    def sources(self, count=10):
        generator = torch.Generator().manual_seed(5)
        if isinstance(self.source, ImageAction):
            return torch.randn(count, 3, 4, 6, generator=generator, dtype=torch.float64)
        drawn = torch.randint(3, WORDS, (50 * count, 5), generator=generator)
        # Whatever the group leaves as it is may have no equivariant answer.
        copies = self.source.orbit(drawn)
        free = (copies[1:] != drawn).any(-1).all(0)
        return drawn[free][:count]

    def targets(self, count=10):
        generator = torch.Generator().manual_seed(6)
        targets = torch.randint(3, TOKENS, (count, 6), generator=generator)
        for row, length in enumerate(torch.randint(1, 6, (count,), generator=generator)):
            targets[row, length], targets[row, length + 1 :] = EOS, PAD
        return targets

    @property
    def inputs(self):
        return self.source if self.options is None else {"source": self.source, **self.options}

    def given(self, count=10):
        if self.options is None:
            return {}
        generator = torch.Generator().manual_seed(7)
        return {"mask": torch.rand(count, 5, generator=generator).double()}


CYCLES = TokenAction.cyclic_swaps(TOKENS, [(3, 4, 5)])
FACES = permuting(symmetric(3), (3, 4, 6), TOKENS)
TURNS = TokenAction(c4(), TokenAction.cyclic_swaps(TOKENS, [(3, 5, 4, 6)]).permutations)
# The turns take 3 to 4 to 5 to 6; the flip exchanges 4 and 6.
SQUARE = torch.arange(TOKENS).repeat(8, 1)
for _k in range(4):
    for _i in range(4):
        SQUARE[_k, 3 + _i] = 3 + (_i + _k) % 4
        SQUARE[4 + _k, 3 + _i] = 3 + (-(_i + _k)) % 4

CASES = {
    "steps, cyclic(2)": Case(
        Steps,
        TokenAction.cyclic_swaps(WORDS, [(4, 5)]),
        TokenAction.cyclic_swaps(TOKENS, [(3, 4)]),
    ),
    "steps, cyclic(3)": Case(Steps, TokenAction.cyclic_swaps(WORDS, [(4, 5, 7)]), CYCLES),
    "runs, symmetric(3)": Case(Runs, permuting(symmetric(3), (5, 3, 8), WORDS), FACES),
    "runs with a mask, cyclic(3)": Case(
        Runs,
        TokenAction.cyclic_swaps(WORDS, [(4, 5, 7), (8, 9, 10)]),
        CYCLES,
        {"mask": TrivialAction(cyclic(3))},
    ),
    "captions, c4": Case(Captions, ImageAction(c4()), TURNS),
    "captions, d4": Case(Captions, ImageAction(d4()), TokenAction(d4(), SQUARE)),
}


def copies_alone(case, decoder, source, *arguments, **options):
    """Each copy g decoded by itself in a call of its own, moved back: a list of ``Decoded``."""
    found = []
    for g in case.tokens.group.elements:
        back = case.tokens.group.inverse(g)
        targets = [case.tokens.transform(t, g) for t in arguments]
        raw = decoder(case.source.transform(source, g).contiguous(), *targets, **options)
        found.append(
            Decoded(
                case.tokens.transform(raw.tokens, back),
                case.tokens.on_logits().transform(raw.scores, back),
                raw.mask,
            )
        )
    return found


def lockstep(case, decoder, source, length, weights=None, **given):
    """The lockstep average by its definition, one copy at a time: probabilities (B, L, V)."""
    group, scores = case.tokens.group, case.tokens.on_logits()
    weights = (
        torch.full((group.order, len(source)), 1 / group.order, dtype=torch.float64)
        if weights is None
        else weights
    )
    states = [
        decoder.model.encode(case.source.transform(source, g).contiguous(), **given)
        for g in group.elements
    ]
    last, found = torch.full((len(source),), BOS), []
    for _ in range(length):
        mean = 0
        for g in group.elements:
            raw, states[g] = decoder.model.step(case.tokens.transform(last, g), states[g])
            back = scores.transform(raw.softmax(-1), group.inverse(g))
            mean = mean + weights[g, :, None] * back
        last = mean.argmax(-1)
        found.append(mean)
    return torch.stack(found, dim=1)
