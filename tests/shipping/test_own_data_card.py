"""The model card of a network on the user's own data."""

import json

from conftest import sentence

from lth_scale import hub, imp
from lth_scale.config.resolution import parse


def test_the_card_claims_no_dataset_of_the_hub_and_shows_no_path(tiny_bert, tmp_path):
    rows = [{"text": sentence(i), "label": "ab"[i % 2]} for i in range(30)]
    path = tmp_path / "private/rows.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = "--task text-classification --validation_split_percentage 20 --max_steps 1"
    more = f"--target_sparsity 0.1 --report_to none --train_file {path}"
    words = [*flags.split(), *more.split(), "--model_name_or_path", str(tiny_bert)]
    imp.run(parse([*words, "--output_dir", str(tmp_path / "out")]))
    card, sizes = hub.push(tmp_path / "out", "me/ours", dry_run=True)
    assert "glue" not in card and "private" not in card
    assert "type: local" in card and "On 20 % of local files" in card
    assert "--train_file rows.jsonl" in card and "datasets:" not in card
    assert not any(".eval_results" in name for name in sizes)
