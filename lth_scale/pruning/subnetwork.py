"""A subnetwork before training: weights and a mask."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Subnetwork:
    """m ⊙ θ before training.

    weights: whole, fp32, by their names in the model. masks: bool, by their names in a ticket, True
    keeps. names: ticket → model. model: an instance of the network's class, for its configuration;
    its weights are not used. pattern, scope: of the search that found the ticket.
    """

    weights: Tensors
    masks: Tensors
    names: Mapping[str, str]
    model: PreTrainedModel
    pattern: str = "unstructured"
    scope: str = "global"

    def matrix(self, name: str) -> Tensor:
        """The weights of a prunable matrix, by its name in a ticket."""
        return self.weights[self.names[name]]
