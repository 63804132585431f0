"""Which weights a ticket is about, read off the structure of the network and not off its names."""

from torch import nn


def base_model(model: nn.Module) -> nn.Module:
    """The encoder without its task head; a model that is an encoder already is returned as it is."""
    return getattr(model, "base_model", model)


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The prunable set: the weight of every `nn.Linear` inside the encoder's stack of layers, and the pooler's.

    The stack is found as the members of `nn.ModuleList`s of the base model, so embeddings (and their
    projections), biases, LayerNorms, task heads and tied decoders are never in it. Keys are names in
    the base model, in the order of its parameters; values are the parameters themselves, 2-D.
    For BERT-base: 72 matrices (84,934,656 weights), 73 with the pooler (paper_reference, pruned_parameters).
    """
    base = base_model(model)
    stacks = [f"{name}." for name, module in base.named_modules() if isinstance(module, nn.ModuleList)]
    linear = {
        f"{name}.weight"
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and (name.startswith((*stacks, "pooler.")))
    }
    return {name: weight for name, weight in base.named_parameters() if name in linear and "embedding" not in name}
