"""Push a run to the Hugging Face Hub, or pull one.

`python -m lth_scale.hub push runs/sst2-bert-base-uncased --hub_model_id user/name`
`python -m lth_scale.hub pull user/name`
"""

from lth_scale.config.command import Command, NoFlags
from lth_scale.config.exit_codes import exit_on_bad_input
from lth_scale.shipping.hub import PushFlags, push, run_push
from lth_scale.shipping.pull import PullFlags, pull, run_pull, verify

__all__ = ["COMMAND", "main", "pull", "push", "verify"]

PUSH = Command(
    name="push",
    summary="upload a run",
    description="Upload a run's network, ticket, compact weights and card, in one commit.",
    flags=PushFlags,
    run=run_push,
)
PULL = Command(
    name="pull",
    summary="download what was pushed",
    description="Download what was pushed, and verify every digest.",
    flags=PullFlags,
    run=run_pull,
)
COMMAND = Command(
    name="hub",
    summary="push a run to the Hugging Face Hub, or pull one",
    flags=NoFlags,
    subcommands=(PUSH, PULL),
    one_process=True,
)
main = COMMAND.main


if __name__ == "__main__":
    exit_on_bad_input(main)
