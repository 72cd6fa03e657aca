"""Kits for encoder-decoders: sequences that are decoded equivariantly as a whole."""

from equitune.seq2seq._copies import Independent, Lockstep
from equitune.seq2seq._decoding import Decoded, GreedyDecoder
from equitune.seq2seq._proxies import (
    entropy,
    negative_least_probability,
    negative_log_probability,
    negative_max_probability,
)
from equitune.seq2seq._wrappers import EquiSeq2Seq, EquiZeroSeq2Seq, LambdaSeq2Seq, OrbitSeq2Seq

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
