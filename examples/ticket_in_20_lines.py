"""Find, inspect, apply and push a ticket from Python, in 20 lines of code.

`python examples/ticket_in_20_lines.py` takes about a minute and uploads nothing. With the name of a
repository, `python examples/ticket_in_20_lines.py USER/NAME`, it pushes the ticket there, with the
token of `hf auth login`.
"""

import sys

from transformers import AutoModelForMaskedLM

from lth_scale import Ticket, hub, imp, prunable, resolve
from lth_scale.tasks.locations import embedded_path

small = dict(preset="demo", max_steps=5, max_eval_samples=100, control="none", report_to="none")
search = dict(task="mlm", target_sparsity=0.7, prune_rate=0.35, output_dir="runs/twenty-lines")
args = resolve(search | small)  # flags of lth_scale.imp
imp.run(args)  # find: rounds of 0, 35 and 70 %; the same again does nothing

ticket = Ticket.load(f"{args.output_dir}/ticket.safetensors")  # inspect
earlier = Ticket.load(f"{args.output_dir}/rounds/01/ticket.safetensors")
print(f"{ticket.sparsity:.1%} of {ticket.prunable:,} weights are pruned")
print("most of all in", max(ticket.layer_sparsity().items(), key=lambda item: item[1]))
kept = ticket.overlap(earlier)["all"]  # masks are nested
print(f"the ticket of 35 % keeps {kept:.0%} of what it keeps")

model = AutoModelForMaskedLM.from_pretrained(embedded_path("bert"))  # θ₀
weights = prunable(ticket.apply(model))  # apply: m ⊙ θ₀, in place
assert not any(weight[~ticket.masks[name]].any() for name, weight in weights.items())  # exact zeros

repository = sys.argv[1] if len(sys.argv) > 1 else None
where, files = hub.push(args.output_dir, repository, dry_run=not repository)  # with a card
print(f"{len(files)} files,", "pushed to" if repository else "none uploaded; the card:", where)
