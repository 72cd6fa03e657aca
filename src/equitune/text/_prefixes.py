"""The runner of language models: the copies of token sequences, each distinct prefix once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self, final

import torch
from torch import Tensor

from equitune._checks import require, require_int, require_ints, require_type
from equitune.actions import Action
from equitune.actions._table import Table
from equitune.functional import widened
from equitune.runners import Call, Mix, Ran, Runner
from equitune.spaces import Space
from equitune.text._branches import branch, split_points
from equitune.text._few_rows import few_rows
from equitune.text._interfaces import Interface, check_model
from equitune.weightings import Copies
from equitune.weightings._base import Mean


@final
class TokenCall:
    """What one call is about: tokens, mask, positions and what is in the cache already."""

    def __init__(
        self, tokens: Tensor, mask: Tensor | None, positions: Tensor | None, past: int
    ) -> None:
        batch, length = tokens.shape
        whole, use = (batch, past + length), "one entry for each token, those in the cache included"
        given = whole if mask is None else tuple(mask.shape)
        require(given == whole, "attention_mask", f"be {whole}", given, use)
        if positions is not None:
            given, must = tuple(positions.shape), f"be {(batch, length)}"
            fits = given in {(batch, length), (1, length)}
            require(fits, "position_ids", must, given, "one position for each token")
            positions = positions.expand(batch, length)
        self.tokens, self.mask, self.positions, self.past = tokens, mask, positions, past

    def keys(self, moved: Tensor, rows: Tensor) -> Tensor:
        """(S * K, T, c), all that tells apart what the backbone is given in a column."""
        new = None if self.mask is None else self.mask[:, self.past :]
        given = (new, self.positions, self._past_masks(rows))
        known = [part.to(moved.dtype) for part in given if part is not None]
        each = [part.repeat_interleave(rows.shape[1], dim=0) for part in known]
        return torch.stack([moved, *each], dim=2)

    def options(self, sequences: Tensor, start: int, stop: int) -> dict[str, Tensor]:
        """The mask and the positions of some columns, for the rows of these sequences."""
        given = {}
        if self.mask is not None:
            given["attention_mask"] = self.mask[sequences, : self.past + stop]
        if self.positions is not None:
            given["position_ids"] = self.positions[sequences, start:stop]
        return given

    def _past_masks(self, rows: Tensor) -> Tensor | None:
        """(S, T), a number for the mask of the past, if sequences of one row differ in it."""
        if self.mask is None or not self.past or rows.shape[0] == 1:
            return None
        past = self.mask[:, : self.past]
        sequences = torch.arange(rows.shape[0], device=rows.device).repeat_interleave(rows.shape[1])
        examples = sequences.new_zeros(int(rows.max()) + 1).scatter_(0, rows.flatten(), sequences)
        if torch.equal(past[examples[rows.flatten()]], past[sequences]):
            return None
        numbers: Tensor = past.unique(dim=0, return_inverse=True)[1]
        return numbers[:, None].expand(-1, self.tokens.shape[1])


@final
class Prefixes(Runner):
    """Runs a causal language model on the copies of its prompts, each distinct prefix once.

    Copies that are equal so far are one row of the batch and of the cache; a row splits in two
    when the first equality word is read or generated. A position is a sample: a weighting sees the
    K copies of S * T positions, each of which depends on the tokens up to it alone.

    Args:
        model: The language model.
        action: How the group acts on token ids.
        general: Tokens that keep the scores of the plain model.

    Raises:
        TypeError: If ``action`` does not act on token ids.
    """

    offers = frozenset({"output", "submodule"})

    def __init__(self, model: Any, action: Action, general: Sequence[int] = ()) -> None:
        check_model(model)
        require_type("action", action, Action, "words.action")
        size = require_int("action.vocabulary_size", action.vocabulary_size, "words.action")
        permutations = action.orbit(torch.arange(size, device="cpu")[:, None])[..., 0]
        moved = (permutations != permutations[0]).any(dim=0).nonzero().flatten()
        self.interface = Interface(model)
        self.moved = Table(moved)
        self.targets = Table(permutations[:, moved].contiguous())
        ids = sorted(require_ints("general", general, "the ids of the general words"))
        self.general = Table(torch.tensor(ids, dtype=torch.int64, device="cpu"))

        self.mask: Tensor | None = None
        self.positions: Tensor | None = None
        self.elements: Tensor | None = None
        self.cache: Any = None
        self.keep = 0

    def __repr__(self) -> str:
        return "Prefixes()"

    def about(self, **given: Any) -> Self:
        """This runner for one call.

        Args:
            **given: ``mask`` (S, past + T), ``positions`` (S, T), ``cache`` (an ``OrbitCache``),
                ``keep`` (the number of last positions to compute, 0 for all), and ``elements``
                (S, K), those of each sequence in place of the group.
        """
        runner = copy.copy(self)
        vars(runner).update(given)
        return runner

    def run(self, call: Call, mix: Mix, elements: Sequence[int]) -> Any:
        """The scores of the next tokens (S, T, V), on the scale of the model's logits."""
        graph, use = torch.compiler.is_exporting(), "unwrap() to export the plain model"
        must = "run passes of fixed sizes in torch.export"
        require(not graph, "runner", must, f"{self}, which looks for equal prefixes", use)
        (action, tokens), cache = call.leaves[0], self.cache
        past = 0 if cache is None else cache.get_seq_length()
        given = TokenCall(tokens, self.mask, self.positions, past)
        length, keep = tokens.shape[1], self.keep
        chosen = torch.tensor(elements, device=tokens.device).expand(len(tokens), -1)
        if self.elements is not None:
            chosen = self.elements.to(tokens.device)
        # The plain model's copy is that of the identity, which a whole group begins with.
        plain = self.general.host.numel() > 0 and chosen.shape[1] == 1
        copies = torch.cat([chosen, torch.zeros_like(chosen)], dim=1) if plain else chosen
        moved = action.transform(tokens.repeat_interleave(copies.shape[1], dim=0), copies.flatten())
        rows = cache.rows_of(copies) if past else torch.zeros_like(copies)
        keys, starts = given.keys(moved, rows), [0]
        # A gradient would have to pass through the cache.
        if cache is not None and not torch.is_grad_enabled() and copies.numel() > 1 < length:
            starts += split_points(rows, keys.flatten(1), length)
        kept, ran = length - keep if 0 < keep < length else 0, []
        for start, stop in zip(starts, [*starts[1:], length], strict=True):
            branches = branch(rows, keys[:, start:stop].flatten(1))
            if cache is not None:
                cache.go_on(branches, copies)
            wanted, rows = stop - max(start, kept), branches.rows
            own = call.kwargs | given.options(branches.examples // rows.shape[1], start, stop)
            part = self._pass(call, moved[branches.examples, start:stop], own, wanted)
            if cache is not None and cache.get_seq_length() != past + stop:
                name = type(call.backbone).__name__
                raise TypeError(f"{name} did not fill the cache it was given; use use_cache=False")
            if wanted > 0:
                ran.append((part, rows))
        return mix(PrefixCopies(self, ran, chosen))

    def literal(self, formula: Any, x: Tensor) -> Tensor:
        """The logarithm of p(v | X) = sum_g w_g(X) p_M(gv | gX) for each prefix X of a text."""

        def last(positions: Tensor) -> Tensor:
            return positions[:, -1]

        scores = formula.on(function=lambda ids: last(formula.backbone(ids).logits), rows=last)
        general, found = self.general.on(x.device), []
        for length in range(1, x.shape[1] + 1):
            mean = scores.mean(x[:, :length]).log_softmax(-1)
            plain = scores.run(x[:, :length]).log_softmax(-1)
            found.append(mean.index_copy(-1, general, plain[:, general]).log_softmax(-1))
        return torch.stack(found, dim=1)

    def compared(self, formula: Any, output: Any) -> Tensor:
        """Log-probabilities: the scale of logits is not that of the definition."""
        scores: Tensor = output.logits.log_softmax(-1)
        return scores

    def _pass(self, call: Call, tokens: Tensor, options: dict[str, Any], wanted: int) -> Ran:
        """What the model gives for the last ``wanted`` columns of some rows."""
        wanted = max(wanted, 1)
        if self.interface.keeps_logits:
            options["logits_to_keep"] = wanted
        options |= self.interface.with_cache(self.cache)

        def logits(tokens: Tensor, **options: Any) -> Any:
            with few_rows(tokens):
                return call.backbone(tokens, return_dict=True, **options).logits

        action = call.leaves[0][0]
        part = replace(call, function=logits, args=(tokens,), kwargs=options, moved={0: action})
        (ran,) = part.evaluate([[tokens]], list)
        action, scores = ran.leaves[0]
        read = ran.read
        if read is not None:
            fits = read.dim() > 2 and read.shape[1] in (tokens.shape[1], wanted)
            must, use = "name a submodule that returns (B, T, ...)", "one within the layers"
            require(fits, "weight_input", must, f"shape {tuple(read.shape)}", use)
            read = read[:, -wanted:]
        return Ran(None, [(action, scores[:, -wanted:])], read)


@final
class PrefixCopies(Copies):
    """The copies of token sequences, made of the distinct rows alone.

    Args:
        runner: The runner, with the tables of its action.
        ran: What the model gave for each group of columns, (R, t, ...), and the row of each copy,
            (S, K or more).
        elements: (S, K), the element of each copy.
    """

    def __init__(
        self, runner: Prefixes, ran: Sequence[tuple[Ran, Tensor]], elements: Tensor
    ) -> None:
        self.runner, self.ran, self.elements = runner, ran, elements
        self.count, self.dtypes = elements.shape[1], (ran[0][0].leaves[0][1].dtype,)

    def read(self, what: str) -> list[tuple[Sequence[int], Tensor]]:
        stacks = []
        for part, rows in self.ran:
            found: Any = part.leaves[0][1] if what == "output" else part.read
            stacks.append(found[rows[:, : self.count].T])
        return [(range(self.count), torch.cat(stacks, dim=2).flatten(1, 2))]

    def outputs(self) -> list[tuple[Sequence[int], Any]]:
        return [(slots, widened(stack)) for slots, stack in self.read("output")]

    def means(self, space: Space) -> list[Mean]:
        return [lambda weights: self._mean(space, weights)]

    def rebuild(self, tensors: Sequence[Tensor]) -> Tensor:
        logits: Tensor = tensors[0].unflatten(0, (self.elements.shape[0], -1))
        return logits

    def _mean(self, space: Space, weights: Tensor | None) -> Tensor:
        if weights is not None:
            weights = weights.unflatten(1, (self.elements.shape[0], -1))
        means, start = [], 0
        for part, rows in self.ran:
            logits = widened(part.leaves[0][1])
            stop = start + logits.shape[1]
            own = None if weights is None else weights[:, :, start:stop]
            means.append(self._mean_of_rows(space, logits, rows, own))
            start = stop
        return torch.cat(means, dim=1).flatten(0, 1)

    def _mean_of_rows(
        self, space: Space, logits: Tensor, rows: Tensor, weights: Tensor | None
    ) -> Tensor:
        """The mean of g^-1 M(gx), (S, t, V), on the scale of the model's logits.

        The inverse action moves few tokens of a vocabulary: those are gathered from every copy,
        while all others are a mean over the rows, each counted once for all copies that it stands
        for. What is averaged are the log-probabilities of each copy plus a constant: the mean of
        the copies' log-sum-exp, which no group element changes. It is that of the plain model where
        all copies agree, so that tokens that do not move have the very logits of the plain model.

        Args:
            space: The space of the mean.
            logits: (R, t, V).
            rows: (S, K), the row of each copy; or one more, that of the plain sequence.
            weights: (K, S, t), or None for equal ones.
        """
        plain, rows = rows[:, -1 if rows.shape[1] > self.count else 0], rows[:, : self.count]
        norms = logits.logsumexp(dim=-1, keepdim=True)
        # Sorted, so that moved copies have the very same mean; a mean of equal numbers is exact.
        each = norms[rows].sort(dim=1).values
        scale = each[:, 0] + (each - each[:, :1]).mean(dim=1)

        def finite(scores: Tensor) -> Tensor:
            # What is impossible for all copies would have no gradient but NaN.
            least = torch.finfo(scores.dtype).min / 4
            return scores.clamp(min=least) if scores.requires_grad else scores

        def on_scale(row: Tensor) -> Tensor:
            return finite(logits[row] + (scale - norms[row]))

        distinct, places, counts = rows.unique(dim=1, return_inverse=True, return_counts=True)
        shares = (counts.to(scale.dtype) / rows.shape[1])[:, None].expand(-1, len(rows))
        if weights is not None:
            shares = weights.new_zeros(len(counts), *weights.shape[1:])
            shares = shares.index_add(0, places, weights)
        mixed = on_scale(distinct.T)
        mixed = mixed[0] if len(mixed) == 1 else space.average(mixed, shares, self.sums)
        # (g^-1 y)[v] = y[g v], as (K, S, t, moved).
        targets = self.runner.targets.on(logits.device)[self.elements.T]
        columns = torch.arange(logits.shape[1], device=logits.device)
        found = logits[rows.T[:, :, None, None], columns[:, None], targets[:, :, None, :]]
        # Sorted, so that words whose copies have the same scores get the very same mean.
        found, order = finite(found + (scale - norms[rows.T])).sort(dim=0)
        if weights is not None:
            weights = weights[..., None].expand_as(found).gather(0, order)
        moved = self.runner.moved.on(mixed.device)
        mixed = mixed.index_copy(-1, moved, space.average(found, weights, self.sums))
        general = self.runner.general.on(mixed.device)
        if general.numel():
            kept = on_scale(plain).index_select(-1, general)
            # The mean of logits has another sum over the vocabulary.
            kept = kept + (mixed.logsumexp(dim=-1, keepdim=True) - scale)
            mixed = mixed.index_copy(-1, general, kept)
        return mixed
