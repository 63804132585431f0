"""lth_scale: find, train, test and ship lottery tickets in pre-trained encoders (Chen et al., NeurIPS 2020)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lth_scale.export import load_exported
    from lth_scale.ticket import Ticket

__version__ = "0.2.0"
__all__ = ["Ticket", "__version__", "load_exported"]


def __getattr__(name: str) -> Any:
    if name == "Ticket":  # late, so that `--help` and bad input do not wait for torch
        from lth_scale.ticket import Ticket

        return Ticket
    if name == "load_exported":
        from lth_scale.export import load_exported

        return load_exported
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
