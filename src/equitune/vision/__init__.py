"""Kits for images: boxes, keypoints and labels, detectors, CLIP as a zero-shot classifier."""

from equitune.vision._boxes import BoxAction
from equitune.vision._coordinates import KeypointAction, label_swaps
from equitune.vision._detections import AbsoluteCoordinates, NormalizedCoordinates, PaddedDetections
from equitune.vision._embeddings import ImageTextLoss, UnitEmbeddings
from equitune.vision._grids import BoxMapAction, GridBoxAction
from equitune.vision._plausibility import check_coordinates
from equitune.vision._prompts import DEFAULT_TEMPLATES, PHOTO_TEMPLATES, embed_classes
from equitune.vision._zero_shot import ZeroShotClassifier

__all__ = [
    "DEFAULT_TEMPLATES",
    "PHOTO_TEMPLATES",
    "AbsoluteCoordinates",
    "BoxAction",
    "BoxMapAction",
    "GridBoxAction",
    "ImageTextLoss",
    "KeypointAction",
    "NormalizedCoordinates",
    "PaddedDetections",
    "UnitEmbeddings",
    "ZeroShotClassifier",
    "check_coordinates",
    "embed_classes",
    "label_swaps",
]
