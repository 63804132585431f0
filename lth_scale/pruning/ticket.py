"""A ticket: a binary mask over a pre-trained network's weights, and where it came from.

`python -m lth_scale.ticket PATH` prints one.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor, nn

from lth_scale.config import hub_access
from lth_scale.config.errors import BadInput
from lth_scale.pruning import ticket_file
from lth_scale.pruning.prunable_set import POOLER, is_ignored, not_linear, prunable
from lth_scale.pruning.similarity import Shared, count, total


@dataclass
class Ticket:
    """A mask m and its provenance.

    masks: bool tensors of the parameters' shapes, True keeps; names are those of the base model.
    theta_sha256: `digest` of the prunable weights at the rewind point. threshold: the largest |w|
    that the last step pruned. base_sha256: `base_digest` of the base model; '' if unknown, as in
    tickets of version 0.1.0.
    """

    masks: dict[str, Tensor]
    base_model: str = ""
    base_revision: str = ""
    theta_sha256: str = ""
    task: str = ""
    threshold: float = 0.0
    arguments: dict[str, Any] = field(default_factory=dict)
    base_sha256: str = ""

    @property
    def prunable(self) -> int:
        """How many weights the mask covers."""
        return ticket_file.count(self.masks)[1]

    @property
    def pruned(self) -> int:
        """How many of them it prunes."""
        return ticket_file.count(self.masks)[0]

    @property
    def sparsity(self) -> float:
        """pruned ÷ prunable."""
        return self.pruned / self.prunable

    @property
    def rounds(self) -> int | None:
        """How many rounds of search led to this mask; None if the file does not say.

        It does not in tickets of version 0.1.0, of controls, and of two tickets combined.
        """
        rounds = self.arguments.get("rounds")
        is_found = self.arguments.get("found_by", "none") == "none"
        return rounds if is_found and type(rounds) is int and rounds >= 0 else None

    def layer_sparsity(self) -> dict[str, float]:
        """Sparsity of each matrix, in the order of the model."""
        return {
            name: 1 - int(mask.count_nonzero()) / mask.numel() for name, mask in self.masks.items()
        }

    def starved(self, transposed: Collection[str] = ()) -> dict[str, int]:
        """Matrices that keep fewer weights than they have outputs, and how many they keep.

        Most of these outputs are constant. transposed: the names of the matrices that are (inputs,
        outputs), as in `prunable_set.transposed`.
        """
        return {
            name: kept
            for name, mask in self.masks.items()
            if (kept := int(mask.count_nonzero())) < mask.shape[name in transposed]
        }

    def save(self, path: str | Path) -> None:
        """Write the ticket file atomically: safetensors, one bit a weight."""
        ticket_file.write(Path(path), self.masks, vars(self))

    @classmethod
    def load(cls, path: str | Path) -> "Ticket":
        """Read a ticket file, which may be untrusted: sizes are checked before memory is allocated.

        Raises ValueError that names the file and what is wrong, such as any altered byte in a file
        that `save` wrote.
        """
        masks, fields = ticket_file.read(Path(path))
        return cls(masks, **fields)

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None) -> "Ticket":
        """Load a ticket from a repository on the Hub (`user/name`), a local directory or a file.

        revision: branch, tag or commit of a repository. Raises as `load`; ValueError if the
        repository does not exist; Stopped (a RuntimeError) if the Hub cannot be reached.
        """
        path, repo, file = Path(name), str(name), "ticket.safetensors"
        if path.is_dir():
            return cls.load(path / file)
        if path.is_file():
            return cls.load(path)
        hub_access.check_source(repo, revision)
        with hub_access.session():
            downloaded = hub_access.fetch(
                lambda: hf_hub_download(repo, file, revision=revision), repo, revision, file
            )
        return cls.load(downloaded)

    def masks_for(self, model: nn.Module) -> dict[str, Tensor]:
        """The masks of `model`'s prunable set, in its order.

        A pooler that the ticket lacks stays dense, and so does what its search left out: matrices
        of --ignore and, in version 0.1.0, all that are not `nn.Linear`. Raises ValueError that
        names the parameter if one is missing on either side or differs in shape.
        """
        weights, ignore = prunable(model), self.arguments.get("ignore") or ()
        is_old = bool(self.arguments) and "ignore" not in self.arguments
        unsupported = not_linear(model).keys() if is_old else ()
        masks = {}
        for name, weight in weights.items():
            mask = self.masks.get(name)
            if mask is None:
                is_dense = name.startswith(POOLER) or name in unsupported
                if not (is_dense or is_ignored(name, ignore)):
                    raise self._mismatch(f"the ticket has no mask for {name}")
                mask = torch.ones(weight.shape, dtype=torch.bool)
            if mask.shape != weight.shape:
                raise self._mismatch(
                    f"{name} is {tuple(mask.shape)} in the ticket and "
                    f"{tuple(weight.shape)} in the model"
                )
            masks[name] = mask
        for name in self.masks:
            if name not in weights and not name.startswith(POOLER):
                raise self._mismatch(f"the model has no {name}")
        return masks

    def _mismatch(self, why: str) -> BadInput:
        base = self.base_model
        return BadInput(f"not a ticket of this model: {why}; use it with a model like {base!r}")

    def apply(self, model: nn.Module) -> nn.Module:
        """Zero the pruned weights of `model` in place and return it. Raises as `masks_for`."""
        masks = self.masks_for(model)
        with torch.no_grad():
            for name, weight in prunable(model).items():
                weight.masked_fill_(~masks[name].to(weight.device), 0.0)
        return model

    def is_of_other_weights(self, base_sha256: str) -> bool:
        """True if this ticket's base is known to have another digest; '' is an unknown one."""
        return "" not in (self.base_sha256, base_sha256) and self.base_sha256 != base_sha256

    def overlap(self, other: "Ticket", allow_other_weights: bool = False) -> dict[str, float]:
        """Fraction of this ticket's kept weights that `other` keeps too, by matrix and for `all`.

        NaN if this ticket keeps nothing. Raises as `shared`.
        """
        counts = self.shared(other, allow_other_weights)
        return {name: shared.share for name, shared in counts.items()}

    def similarity(self, other: "Ticket", allow_other_weights: bool = False) -> dict[str, float]:
        """|A∩B| ÷ |A∪B| of the weights that the two tickets keep, by matrix and for `all`.

        The field's measure (Jaccard), the same in both directions. `chance_similarity` is its value
        for random masks. NaN if neither keeps a weight. Raises as `shared`.
        """
        counts = self.shared(other, allow_other_weights)
        return {name: shared.similarity for name, shared in counts.items()}

    def shared(self, other: "Ticket", allow_other_weights: bool = False) -> dict[str, Shared]:
        """How many weights the tickets keep, alone and both, by matrix and for `all`.

        Counted over the matrices that both have. Raises ValueError for tickets of different
        networks, or of other base weights without `allow_other_weights`.
        """
        shapes = {name: mask.shape for name, mask in other.masks.items()}
        common = [name for name, mask in self.masks.items() if shapes.get(name) == mask.shape]
        if not common:
            raise BadInput(
                f"tickets of two networks: {self.base_model!r} and {other.base_model!r} "
                "share no matrix; use tickets of one network"
            )
        self._check_same_base(other, allow_other_weights)
        shared = {name: count(self.masks[name], other.masks[name]) for name in common}
        return shared | {"all": total(shared.values())}

    def union(self, other: "Ticket", allow_other_weights: bool = False) -> "Ticket":
        """The ticket that keeps what either keeps, with the provenance of this one.

        Raises as `intersect`.
        """
        return self._combine(other, torch.logical_or, "union", allow_other_weights)

    def intersect(self, other: "Ticket", allow_other_weights: bool = False) -> "Ticket":
        """The ticket that keeps what both keep, with the provenance of this one.

        A pooler that one lacks stays as in the other. Raises ValueError if the two cover different
        matrices, or have other base weights, which `allow_other_weights` accepts and records.
        """
        return self._combine(other, torch.logical_and, "intersect", allow_other_weights)

    def _combine(
        self,
        other: "Ticket",
        operator: Callable[[Tensor, Tensor], Tensor],
        operation: str,
        allow_other_weights: bool,
    ) -> "Ticket":
        masks = {**self.masks, **other.masks}
        for name in masks:
            ours, theirs = self.masks.get(name), other.masks.get(name)
            if (ours is None or theirs is None) and name.startswith(POOLER):
                continue
            if ours is None or theirs is None or ours.shape != theirs.shape:
                raise BadInput(
                    f"tickets of two networks: {name} is missing in one or has another shape; "
                    "use tickets of one network"
                )
            masks[name] = operator(ours, theirs)
        self._check_same_base(other, allow_other_weights)
        found_by = f"{operation} of a ticket of {self.task} and one of {other.task}"
        arguments = {**self.arguments, "found_by": found_by}
        if self.is_of_other_weights(other.base_sha256):
            arguments["allow_other_weights"] = True
        return replace(self, masks=masks, threshold=0.0, arguments=arguments)

    def _check_same_base(self, other: "Ticket", allow_other_weights: bool) -> None:
        if self.is_of_other_weights(other.base_sha256) and not allow_other_weights:
            raise BadInput(
                f"tickets of two bases: base_sha256 {self.base_sha256[:12]}… of "
                f"{self.base_model!r} and {other.base_sha256[:12]}… of {other.base_model!r}; use "
                "tickets of one base, or --allow_other_weights (allow_other_weights=True in Python)"
            )
