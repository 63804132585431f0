"""The results of each validation example that a stage keeps, in predictions.safetensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lth_scale.config import files
from lth_scale.config.run_files import PREDICTIONS

if TYPE_CHECKING:
    import numpy


def write(stage: Path, arrays: "Mapping[str, numpy.ndarray]") -> None:
    """Write the arrays of a stage into its directory, if there are any."""
    from torch import from_numpy  # imports torch

    if arrays:
        tensors = {name: from_numpy(array) for name, array in arrays.items()}
        files.write_tensors(stage / PREDICTIONS, tensors)


def read(stage: Path) -> "dict[str, numpy.ndarray]":
    """Read the arrays of a stage by name, in the order of the validation rows.

    stage: the directory of a round, a control or a seed. Which arrays there are depends on the
    task: `prediction` and `label` of classes and scores; `f1` and `exact_match` of SQuAD's
    questions; `loss`, `masked` and `correct` of the blocks of masked language modelling; those of
    `TokenTask.predictions` of tagged words. Those of
    further validation sets have a suffix (MNLI: `prediction_mismatched`). Empty if the run kept
    none: an older version, or a task of a third party. Raises ValueError if the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = stage / PREDICTIONS
    try:
        files.check_regular(path)
        return load_file(path)
    except FileNotFoundError:
        return {}
    except (OSError, SafetensorError, KeyError, TypeError) as problem:
        raise ValueError(f"{path} is damaged ({problem})") from problem
