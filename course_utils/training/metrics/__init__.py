"""Metrics as ``evaluate`` modules: a folder with one script each, loaded without a network (lesson 04).

    f1 = load_metric("f1", average="macro", num_labels=10)
    f1.compute(predictions=predicted, references=labels)      # {"f1": 0.61}

Names and result keys are those of the public modules; the values come from scikit-learn, scipy, rouge_score and
sacrebleu. Importing this costs nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils.hub import check_source, require_hub

if TYPE_CHECKING:
    from evaluate import Metric

CLASSIFICATION = ("accuracy", "precision", "recall", "f1", "confusion_matrix")
REGRESSION = ("mse", "mae", "r_squared", "pearsonr", "spearmanr")
GENERATION = ("exact_match", "rouge", "bleu", "perplexity")
METRICS = CLASSIFICATION + REGRESSION + GENERATION


def load_metric(name: str, source: str = "local", **options: Any) -> Metric:
    """The metric called ``name``, with ``compute``, ``add`` and ``add_batch``.

    Args:
        name: one of ``METRICS``.
        source: ``"local"``: the script in this folder. ``"hub"``: the public module of that name, whose code is
            downloaded and **executed** by ``evaluate``. Two of those differ: ``r_squared`` returns a rounded number
            and no dict, ``perplexity`` takes texts and loads a language model.
        **options: of a local metric: ``average`` and ``num_labels`` (classification), ``keep_in_memory`` (default
            True: nothing is written to the disk; False: rows go to ``HF_METRICS_CACHE``).

    Raises:
        ValueError: unknown ``name`` or ``source``, or options for the hub.
        ConnectionError: ``source="hub"`` without a network.
    """
    check_source(source)
    if name not in METRICS:
        raise ValueError(f"name={name!r} is not known; allowed: {', '.join(map(repr, METRICS))}")
    import evaluate

    if source == "local":
        return evaluate.load(str(metric_folder(name)), **({"keep_in_memory": True} | options))
    if options:
        raise ValueError(f"options={options!r} with source='hub'; allowed: none, the public modules take them later")
    require_hub()
    try:
        return evaluate.load(name)
    except (FileNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ConnectionError(
            f"metric {name!r} could not be loaded from the hub ({reason}); use source='local'"
        ) from error


def metric_folder(name: str) -> Path:
    """Where the script of a local metric lies: what ``evaluate.load`` is given."""
    return Path(__file__).resolve().parent / name
