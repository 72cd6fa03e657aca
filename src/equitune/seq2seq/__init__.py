"""Kits for encoder-decoders: sequences that are decoded equivariantly as a whole."""

from equitune.seq2seq.copies import Independent, Lockstep
from equitune.seq2seq.decoding import Decoded, GreedyDecoder
from equitune.seq2seq.proxies import (
    entropy,
    negative_least_probability,
    negative_log_probability,
    negative_max_probability,
)
from equitune.seq2seq.wrappers import EquiSeq2Seq, EquiZeroSeq2Seq, LambdaSeq2Seq, OrbitSeq2Seq

__all__ = [
    "Decoded",
    "EquiSeq2Seq",
    "EquiZeroSeq2Seq",
    "GreedyDecoder",
    "Independent",
    "LambdaSeq2Seq",
    "Lockstep",
    "OrbitSeq2Seq",
    "entropy",
    "negative_least_probability",
    "negative_log_probability",
    "negative_max_probability",
]
