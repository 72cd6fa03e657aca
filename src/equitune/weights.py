"""Weight networks for lambda-equitune."""

from equitune.wrappers.lambda_equitune import OrbitWeightNet

__all__ = ["OrbitWeightNet"]
