"""Optional packages, and the extra of `lth_scale` that installs them."""

import importlib

from lth_scale.config.errors import BadInput


def require(*packages: str, extra: str = "onnx") -> None:
    """Raise BadInput unless all packages can be imported."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as problem:
            raise BadInput(
                f"{package}: cannot be imported ({problem}); pip install 'lth_scale[{extra}]'"
            ) from problem
