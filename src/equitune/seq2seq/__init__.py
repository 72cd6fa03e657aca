"""Kits for encoder-decoders: sequences that are decoded equivariantly as a whole."""

from equitune.seq2seq.decoding import Decoded, GreedyDecoder, StepModel

__all__ = ["Decoded", "GreedyDecoder", "StepModel"]
