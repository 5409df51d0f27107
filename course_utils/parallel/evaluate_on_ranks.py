"""One evaluation on several processes, with everything that can be gathered the right and the wrong way (lesson 04).

    arguments = save_inputs(model, rows, tokenizer, "folder", batch_size=32)
    run_ranks("course_utils.parallel.evaluate_on_ranks:evaluate", 2, arguments)

Reference: accelerate's page "Distributed evaluation", ``gather_for_metrics``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

Pairs = list[list[int]]  # (prediction, label) of each row


def save_inputs(model: Any, rows: Any, tokenizer: Any, folder: str | Path, batch_size: int) -> dict[str, Any]:
    """Save what the ranks load, and return the arguments of ``evaluate``.

    Args:
        rows: a ``Dataset`` with ``text`` and ``label``; its sentences become rows of 48 tokens, padded.
        folder: is made where it is missing.
    """

    def encode(batch: dict) -> dict:
        encoded = tokenizer(batch["text"], truncation=True, max_length=48, padding="max_length")
        return {name: encoded[name] for name in ("input_ids", "attention_mask")} | {"labels": batch["label"]}

    arguments = {"model_folder": f"{folder}/model", "rows_folder": f"{folder}/rows", "batch_size": batch_size}
    model.save_pretrained(arguments["model_folder"])
    rows.map(encode, batched=True, remove_columns=rows.column_names).save_to_disk(arguments["rows_folder"])
    return arguments


def evaluate(model_folder: str, rows_folder: str, batch_size: int) -> dict[str, Any]:
    """What this rank knows after it went through its share of the rows.

    Args:
        model_folder: a saved sequence classifier and what ``from_pretrained`` needs.
        rows_folder: a saved ``Dataset`` with ``input_ids``, ``attention_mask`` (both of one length) and ``labels``.
        batch_size: rows per batch and rank.

    Returns:
        ``own``, ``gather`` and ``gather_for_metrics``: (prediction, label) pairs, in the order they came; ``trainer``:
        what ``Trainer.evaluate`` returns on the same ranks, with ``n_seen``, the rows ``compute_metrics`` was given.
    """
    import torch
    from accelerate import Accelerator
    from datasets import load_from_disk
    from torch.utils.data import DataLoader
    from transformers import AutoModelForSequenceClassification

    accelerator = Accelerator(cpu=True)
    model = AutoModelForSequenceClassification.from_pretrained(model_folder).eval()
    rows = load_from_disk(rows_folder).with_format("torch")
    loader = accelerator.prepare(DataLoader(rows, batch_size))  # each rank gets every second batch
    found: dict[str, list] = {"own": [], "gather": [], "gather_for_metrics": []}
    for batch in loader:
        labels = batch.pop("labels")
        with torch.no_grad():
            pairs = torch.stack([model(**batch).logits.argmax(-1), labels], dim=1)  # (B, 2)
        found["own"].append(pairs)
        found["gather"].append(accelerator.gather(pairs))  # (ranks * B, 2)
        found["gather_for_metrics"].append(accelerator.gather_for_metrics(pairs))  # without the filling
    result: dict[str, Any] = {name: torch.cat(parts).tolist() for name, parts in found.items()}
    return result | {"trainer": _trainer_evaluation(model, load_from_disk(rows_folder), Path(rows_folder), batch_size)}


def _trainer_evaluation(model: Any, rows: Any, folder: Path, batch_size: int) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    from course_utils.training.settings import quiet_trainer

    def compute_metrics(prediction: Any) -> dict[str, float]:
        predicted, labels = prediction.predictions.argmax(-1), prediction.label_ids
        classes = range(prediction.predictions.shape[-1])
        macro = f1_score(labels, predicted, average="macro", labels=classes, zero_division=0)
        return {"f1": float(macro), "accuracy": float(accuracy_score(labels, predicted)), "n_seen": len(labels)}

    model.accepts_loss_kwargs = False  # its loss ignores num_items_in_batch (lesson 06)
    options = {"compute_metrics": compute_metrics, "use_cpu": True, "per_device_eval_batch_size": batch_size}
    found = quiet_trainer(model, folder / "trainer", eval_dataset=rows, **options).evaluate()
    return {name: found[f"eval_{name}"] for name in ("f1", "accuracy", "n_seen", "loss")}
