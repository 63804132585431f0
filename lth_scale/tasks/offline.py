"""Going offline in seconds if the Hub does not answer."""

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

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
        return
    except HfHubHTTPError as error:
        if error.response.status_code < 500:
            return  # the Hub answered; the code that loads the repository reports it
    except Exception:
        pass
    compat.go_offline()
