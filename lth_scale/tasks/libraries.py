"""The Hugging Face libraries: quiet while they load, and offline if the Hub does not answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from logging import WARNING
from logging.handlers import BufferingHandler

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from transformers import logging as transformers_logging

from lth_scale.distributed import compat

NO_NETWORK = (
    "check the network, use --preset demo, or use local files with --model_name_or_path DIR and "
    "--dataset_path DIR"
)


def go_offline_unless_reachable(name: str, kind: str) -> None:
    """Switch the libraries to their caches, without minutes of retries, if the Hub does not answer.

    name, kind: a repository on the Hub, and "model" or "dataset".
    """
    try:
        HfApi().repo_info(name, repo_type=kind, timeout=10)
    except HfHubHTTPError as error:
        if error.response.status_code >= 500:  # others are reported when the repository is loaded
            compat.go_offline()
    except Exception:
        compat.go_offline()


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress transformers' warnings and bars; an error gets the warnings as its notes."""
    library = transformers_logging.get_logger()
    collector = BufferingHandler(capacity=10_000)
    collector.setLevel(WARNING)
    has_bars = transformers_logging.is_progress_bar_enabled()
    propagate, handlers = library.propagate, library.handlers
    library.propagate, library.handlers = False, [collector]
    transformers_logging.disable_progress_bar()
    try:
        yield
    except Exception as error:
        for record in collector.buffer:
            error.add_note(record.getMessage())
        raise
    finally:
        library.propagate, library.handlers = propagate, handlers
        if has_bars:
            transformers_logging.enable_progress_bar()
