"""Defaults of the flags: the paper's, the official code's, and the presets'."""

from typing import Any

EMBEDDED = "embedded"
SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial")
# Arguments of optimizers that other flags set.
ELSEWHERE = {
    "lr": "--learning_rate",
    "weight_decay": "--weight_decay",
    "fused": "--optim adamw_torch_fused",
}
# Chen et al. 2020, Table 1 and the README of VITA-Group/BERT-Tickets@4d8e035: batch, rate, length.
GLUE_DEFAULTS: dict[str, Any] = {
    "model_name_or_path": "google-bert/bert-base-uncased",
    "per_device_train_batch_size": 32,
    "learning_rate": 2e-5,
    "num_train_epochs": 3.0,
    "max_steps": -1,
    "max_seq_length": 128,
}
# Of the other tasks, from the same sources; `register_task` adds its own. A round of the MLM search
# is 10,000 steps (`--save_steps 10000` there).
DEFAULTS: dict[str, dict[str, Any]] = {
    "squad": GLUE_DEFAULTS
    | {
        "per_device_train_batch_size": 16,
        "learning_rate": 3e-5,
        "num_train_epochs": 2.0,
        "max_seq_length": 384,
    },
    "mlm": GLUE_DEFAULTS
    | {
        "per_device_train_batch_size": 16,
        "learning_rate": 5e-5,
        "num_train_epochs": 1.0,
        "max_steps": 10_000,
        "max_seq_length": 512,
    },
}
_DEMO: dict[str, Any] = {
    "model_name_or_path": EMBEDDED,
    "dataset_path": EMBEDDED,
    "target_sparsity": 0.8,
    "max_seq_length": 128,
    "control": "random_mask",
}
DEMO: dict[str, dict[str, Any]] = {
    "mlm": _DEMO
    | {
        "per_device_train_batch_size": 16,
        "learning_rate": 5e-4,
        "max_steps": 50,
        "max_eval_samples": 300,
    },
    "sst2": _DEMO | {"per_device_train_batch_size": 32, "learning_rate": 1e-3, "max_steps": 150},
}
# BERT-mini of Turc et al. 2019 (arXiv:1908.08962) on a slice of the real data.
QUICK: dict[str, Any] = {
    "model_name_or_path": "google/bert_uncased_L-4_H-256_A-4",
    "max_train_samples": 2_000,
    "max_eval_samples": 500,
    "max_steps": 60,
    "learning_rate": 2e-4,
    "max_seq_length": 128,
    "prune_rate": 0.2,
    "target_sparsity": 0.8,
}
