"""Find, inspect, apply and push a ticket from Python, in 20 lines of code.

`python examples/ticket_in_20_lines.py` takes a minute or so and uploads nothing. With the name of a repository,
`python examples/ticket_in_20_lines.py USER/NAME`, it pushes the ticket there, with the token of `hf auth login`.
"""

import sys

from transformers import AutoModelForMaskedLM

from lth_scale import Ticket, imp
from lth_scale.config.resolution import resolve
from lth_scale.pruning.prunable_set import prunable
from lth_scale.shipping import hub
from lth_scale.tasks.locations import embedded_path

small = dict(
    preset="demo",
    max_steps=5,
    prune_rate=0.35,
    control="none",
    report_to="none",
    max_eval_samples=100,
)
args = resolve(
    dict(task="mlm", target_sparsity=0.7, output_dir="runs/twenty-lines", **small)
)  # flags of lth_scale.imp
imp.run(args)  # find: rounds of 0, 35 and 70 %; the same again does nothing

ticket = Ticket.load(f"{args.output_dir}/ticket.safetensors")  # inspect
earlier = Ticket.load(f"{args.output_dir}/rounds/01/ticket.safetensors")
print(f"{ticket.sparsity:.1%} of {ticket.prunable:,} weights are pruned")
print("most of all in", max(ticket.layer_sparsity().items(), key=lambda item: item[1]))
print(
    f"the ticket of 35 % keeps {ticket.overlap(earlier)['all']:.0%} of what it keeps"
)  # masks are nested

model = AutoModelForMaskedLM.from_pretrained(embedded_path("bert"))  # θ₀
weights = prunable(ticket.apply(model))  # apply: m ⊙ θ₀, in place
assert not any(weight[~ticket.masks[name]].any() for name, weight in weights.items())  # exact zeros

repository = sys.argv[1] if len(sys.argv) > 1 else None
where, files = hub.push(
    args.output_dir, repository, dry_run=repository is None
)  # push, with a card
print(f"{len(files)} files,", "pushed to" if repository else "none uploaded; the card:", where)
