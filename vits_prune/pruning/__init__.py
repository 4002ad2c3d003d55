"""Voice + PruneSpec -> Voice."""

from vits_prune.pruning.layers import Layer, layers
from vits_prune.pruning.prune import prune
from vits_prune.pruning.spec import PruneSpec

__all__ = ["Layer", "PruneSpec", "layers", "prune"]
