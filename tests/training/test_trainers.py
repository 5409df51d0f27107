"""RelevanceTrainer and PartsTrainer: accumulated = full batch, on one process and on two; logs, evaluation, errors."""

import json

import pytest
import torch
from torch.nn import functional as F

from course_utils.lessons.lesson_06.relevance_runs import VOCABULARY, first_step, pad_rows, relevance_rows
from course_utils.models.bag import BagClassifier
from course_utils.parallel import run_ranks
from course_utils.training.losses import cross_entropy, label_smoothing
from course_utils.training.settings import logged, quiet_trainer
from course_utils.training.trainers import PartsTrainer, RelevanceTrainer

PARTS = {"hard": 0.7, "smooth": 0.3}


def language_model():
    """The one that ``first_step`` trains."""
    from course_utils.models import load_causal_lm

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return load_causal_lm(vocab_size=VOCABULARY, **size, num_key_value_heads=1, head_dim=8)


def relevance_by_hand():
    """Loss and gradient norm of all rows at once, in plain torch."""
    model = language_model()
    batch = pad_rows(relevance_rows())
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels, relevance = batch["labels"][:, 1:], batch["relevance"][:, 1:]
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    loss = (relevance * losses).sum() / (relevance * (labels != -100)).sum()
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()


@pytest.mark.parametrize("accumulation", [1, 2, 4, 16])
def test_relevance_equals_the_full_batch(accumulation):
    loss, norm = relevance_by_hand()
    found_loss, found_norm = first_step(relevance_rows(), accumulation)
    assert found_loss == pytest.approx(loss, rel=1e-6) and found_norm == pytest.approx(norm, rel=1e-6)


def test_a_common_factor_changes_nothing():
    louder = [row | {"relevance": 50 * row["relevance"]} for row in relevance_rows()]
    assert first_step(louder, 4) == pytest.approx(first_step(relevance_rows(), 4), rel=1e-5)


def test_equal_relevance_is_the_models_own_loss():
    equal = [row | {"relevance": torch.full_like(row["relevance"], 0.2)} for row in relevance_rows()]
    batch = {name: value for name, value in pad_rows(equal).items() if name != "relevance"}
    assert first_step(equal, 4)[0] == pytest.approx(language_model()(**batch).loss.item(), rel=1e-6)


def test_an_evaluation_divides_by_its_own_relevance(tmp_path):
    """The Trainer hands a causal model's evaluation the number of labels, which is not it."""
    trainer = quiet_trainer(
        language_model(),
        tmp_path,
        eval_dataset=relevance_rows(),
        data_collator=pad_rows,
        trainer_class=RelevanceTrainer,
        remove_unused_columns=False,
        per_device_eval_batch_size=16,
        use_cpu=True,
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(relevance_by_hand()[0], rel=1e-6)


def relevance_trainer(folder, **settings):
    rows = [
        {"input_ids": torch.randint(20, (4,)), "labels": torch.tensor(n % 3), "relevance": torch.tensor(n / 8)}
        for n in range(8)
    ]
    torch.manual_seed(0)
    model = BagClassifier(20, 3, width=4)
    defaults = {"remove_unused_columns": False, "use_cpu": True, "per_device_eval_batch_size": 8}
    return quiet_trainer(model, folder, rows, rows, trainer_class=RelevanceTrainer, **(defaults | settings)), rows


def test_rows_with_a_relevance_and_evaluation(tmp_path):
    trainer, rows = relevance_trainer(tmp_path)
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    losses = F.cross_entropy(trainer.model(batch["input_ids"]).logits, batch["labels"], reduction="none")
    expected = (batch["relevance"] * losses).sum() / batch["relevance"].sum()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-6)
    assert set(batch) == {"input_ids", "labels", "relevance"}
    assert trainer.predict(rows).predictions.shape == (8, 3)


def test_the_column_would_be_dropped(tmp_path):
    with pytest.raises(ValueError, match="remove_unused_columns=True drops the column 'relevance'"):
        relevance_trainer(tmp_path, remove_unused_columns=True)


def test_a_batch_without_relevance(tmp_path):
    trainer, rows = relevance_trainer(tmp_path)
    for row in rows:
        del row["relevance"]
    with pytest.raises(ValueError, match="the batch has input_ids, labels; allowed: 'relevance' as well"):
        trainer.train()


def two_parts(outputs, inputs, num_items_in_batch=None):
    logits, labels = outputs["logits"], inputs["labels"]
    return {
        "hard": cross_entropy(logits, labels, num_items_in_batch),
        "smooth": label_smoothing(logits, labels, 0.3, num_items_in_batch),
    }


def parts_run(folder, accumulation, processes=1, steps=1, **settings):
    from functools import partial

    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(3, (16 * steps,), generator=generator)
    labels[torch.tensor([1, 2, 3, 5, 7, 10])] = -100
    ids = torch.randint(20, (16 * steps, 4), generator=generator)
    rows = [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]
    torch.manual_seed(0)
    trainer = quiet_trainer(
        BagClassifier(20, 3, width=4),
        folder,
        rows,
        rows,
        trainer_class=partial(PartsTrainer, parts=two_parts, weights=PARTS),
        max_steps=steps,
        per_device_train_batch_size=16 // accumulation // processes,
        gradient_accumulation_steps=accumulation,
        train_sampling_strategy="sequential",
        max_grad_norm=1e9,
        use_cpu=True,
        **({"logging_steps": 1} | settings),
    )
    trainer.train()
    return trainer


def summary(trainer):
    keys = ("loss", "loss_hard", "loss_smooth", "grad_norm")
    return {key: [value for _, value in logged(trainer, key)] for key in keys}


@pytest.mark.parametrize("accumulation", [2, 4, 16])
def test_parts_equal_the_full_batch(tmp_path, accumulation):
    whole, pieces = summary(parts_run(tmp_path, 1)), summary(parts_run(tmp_path, accumulation))
    for key in whole:
        assert pieces[key] == pytest.approx(whole[key], rel=1e-6), key
    assert whole["loss"][0] == pytest.approx(0.7 * whole["loss_hard"][0] + 0.3 * whole["loss_smooth"][0], rel=1e-6)


def test_logged_parts_are_means_over_the_steps(tmp_path):
    each = summary(parts_run(tmp_path, 2, steps=6))
    rare = summary(parts_run(tmp_path, 2, steps=6, logging_steps=3))
    for key in ("loss", "loss_hard", "loss_smooth"):
        expected = [sum(each[key][:3]) / 3, sum(each[key][3:]) / 3]
        assert rare[key] == pytest.approx(expected, rel=1e-5)


def test_an_evaluation_does_not_leak_into_the_log(tmp_path):
    plain = summary(parts_run(tmp_path, 2, steps=4))
    watched = parts_run(tmp_path, 2, steps=4, eval_strategy="steps", eval_steps=1)
    assert summary(watched) == plain
    assert len(logged(watched, "eval_loss")) == 4
    json.dumps(watched.state.log_history)  # plain numbers


def two_processes(folder):
    """Run on each of two processes by run_ranks; the module's own functions do the work."""
    torch.set_num_threads(1)
    from course_utils.lessons.lesson_06.who_divides import worst_of_losses

    rows = relevance_rows()
    found = {"losses": worst_of_losses([1, 2])}
    for accumulation in (1, 4):
        steps = parts_run(f"{folder}/{accumulation}", accumulation, processes=2)
        found[f"parts {accumulation}"] = summary(steps)
        relevance = first_step(rows, accumulation * 2)  # half of the rows a process
        found[f"relevance {accumulation}"] = relevance
    return found


def test_two_processes_equal_the_full_batch(tmp_path):
    """Every loss through both doors, relevance and parts: one process's full batch within 1e-6."""
    ranks = run_ranks(two_processes, 2, {"folder": str(tmp_path)}, timeout=400)
    whole = summary(parts_run(tmp_path, 1))
    loss, norm = relevance_by_hand()
    for rank in ranks:
        assert max(rank["losses"].values()) < 1e-6, rank["losses"]
        for accumulation in (1, 4):
            for key, values in rank[f"parts {accumulation}"].items():
                assert values == pytest.approx(whole[key], rel=1e-6), key
            assert rank[f"relevance {accumulation}"] == pytest.approx([loss, norm], rel=1e-6)
