"""Kits for images: boxes, keypoints and labels, detectors, CLIP as a zero-shot classifier."""

from equitune.vision.boxes import BoxAction
from equitune.vision.coordinates import KeypointAction, label_swaps
from equitune.vision.detections import AbsoluteCoordinates, PaddedDetections, RelativeCoordinates
from equitune.vision.embeddings import ImageTextLoss, UnitEmbeddings
from equitune.vision.grids import BoxMapAction, GridBoxAction
from equitune.vision.plausibility import check_coordinates
from equitune.vision.prompts import DEFAULT_TEMPLATES, PHOTO_TEMPLATES, embed_classes
from equitune.vision.zero_shot import ZeroShotClassifier

__all__ = [
    "DEFAULT_TEMPLATES",
    "PHOTO_TEMPLATES",
    "AbsoluteCoordinates",
    "BoxAction",
    "BoxMapAction",
    "GridBoxAction",
    "ImageTextLoss",
    "KeypointAction",
    "PaddedDetections",
    "RelativeCoordinates",
    "UnitEmbeddings",
    "ZeroShotClassifier",
    "check_coordinates",
    "embed_classes",
    "label_swaps",
]
