"""Where a matrix is in its network, by the name of its parameter alone."""

import re

_ROLES = {"q": "query", "k": "key", "v": "value", **{r: r for r in ("query", "key", "value")}}
_FILLERS = {"self", "dense", "layer"}


def position(name: str) -> tuple[str, str]:
    """The layer and the kind of a matrix: `("3", "query")`; the layer is "" outside of the layers.

    The layer is the first number in the name. The kind is the rest of it in words, without those
    that say nothing: query, key, value, attention output, intermediate and output for BERT.
    """
    match = re.fullmatch(r"(?:.*?\.(\d+)\.)?(.+)\.weight", name)
    return (match[1] or "", _kind(match[2])) if match else ("", name)


def _kind(path: str) -> str:
    last = path.rpartition(".")[2].removesuffix("_proj").removesuffix("_lin")
    words = [word for word in re.split(r"[._]", path) if word not in _FILLERS]
    return _ROLES.get(last) or " ".join(words) or path
