"""Pictures of what a wrapper does; figures of matplotlib, returned and never shown or saved."""

from equitune.viz._features import draw_feature_maps
from equitune.viz._orbits import draw_orbit
from equitune.viz._weights import draw_weights

__all__ = ["draw_feature_maps", "draw_orbit", "draw_weights"]
