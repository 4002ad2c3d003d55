"""Voice + PruneSpec -> Voice."""

from vits_prune.pruning.layers import Layer, layers
from vits_prune.pruning.prune import prune, prune_steps
from vits_prune.pruning.spec import PruneSpec, Shape

__all__ = ["Layer", "PruneSpec", "Shape", "layers", "prune", "prune_steps"]
