"""Kits for encoder-decoders: sequences that are decoded equivariantly as a whole."""

from equitune.seq2seq._decoding import Decoded, GreedyDecoder
from equitune.seq2seq._proxies import (
    mean_entropy,
    mean_error_probability,
    negative_log_min_probability,
    negative_log_probability,
)
from equitune.seq2seq._runners import Alone, Independent, Lockstep
from equitune.seq2seq._wrappers import (
    EquiSeq2Seq,
    EquiZeroSeq2Seq,
    LambdaSeq2Seq,
    SymmetrizedSeq2Seq,
)

__all__ = [
    "Alone",
    "Decoded",
    "EquiSeq2Seq",
    "EquiZeroSeq2Seq",
    "GreedyDecoder",
    "Independent",
    "LambdaSeq2Seq",
    "Lockstep",
    "SymmetrizedSeq2Seq",
    "mean_entropy",
    "mean_error_probability",
    "negative_log_min_probability",
    "negative_log_probability",
]
