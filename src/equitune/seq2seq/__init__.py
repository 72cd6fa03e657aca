"""Kits for encoder-decoders: sequences that are decoded equivariantly as a whole."""

from equitune.seq2seq._copies import Independent, Lockstep
from equitune.seq2seq._decoding import Decoded, GreedyDecoder
from equitune.seq2seq._proxies import (
    mean_entropy,
    mean_error_probability,
    negative_log_min_probability,
    negative_log_probability,
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
    "mean_entropy",
    "mean_error_probability",
    "negative_log_min_probability",
    "negative_log_probability",
]
