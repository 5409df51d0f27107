"""The loop: equal to Trainer, accumulation equal to the big batch, clipping equal to torch's, bad input named."""

import copy

import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from course_utils.data.batches import ShuffledBatches
from course_utils.training import loop
from course_utils.training.evaluation import evaluate, macro_f1, predict
from course_utils.training.loop import LoopConfig, clip_grad_norm, summed_cross_entropy, train
from course_utils.training.optim import parameter_groups
from course_utils.training.schedules import make_scheduler
from tests.training import tiny_run


def small_classifier():
    from transformers import ModernBertConfig, ModernBertForSequenceClassification, set_seed

    set_seed(0)
    size = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    dropout = dict.fromkeys(("embedding_dropout", "mlp_dropout", "attention_dropout", "classifier_dropout"), 0.1)
    config = ModernBertConfig(**size, **tokens, **dropout, num_attention_heads=2, num_labels=3)
    return ModernBertForSequenceClassification(config)


def small_rows(count=52):
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "input_ids": torch.randint(3, 50, (9,), generator=generator),
            "attention_mask": torch.ones(9, dtype=torch.long),
            "labels": torch.randint(0, 3, (), generator=generator),
        }
        for _ in range(count)
    ]


@pytest.mark.parametrize("accumulation, loss_function", [(1, None), (3, summed_cross_entropy)])
def test_equals_trainer_bitwise(tmp_path, accumulation, loss_function):
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

    class Reseed(TrainerCallback):
        def on_train_begin(self, *args, **options):
            set_seed(5)

    steps, theirs = 12, small_classifier()
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=steps,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-3,
        weight_decay=0.01,
        warmup_steps=3,
        logging_steps=1,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        theirs,
        arguments,
        train_dataset=small_rows(),
        data_collator=default_collate,
        compute_loss_func=loss_function,
        callbacks=[Reseed()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()

    ours = small_classifier()
    optimizer = torch.optim.AdamW(parameter_groups(ours, 0.01), lr=1e-3, fused=True)
    set_seed(5)
    scheduler = make_scheduler(optimizer, "linear", 3, steps)
    config = LoopConfig(steps, accumulation=accumulation)
    history = train(ours, DataLoader(small_rows(), 8), optimizer, config, scheduler, loss_function)

    keys = ("loss", "grad_norm", "learning_rate")
    logged = [{k: record[k] for k in keys} for record in trainer.state.log_history if "loss" in record]
    assert [{k: record[k] for k in keys} for record in history] == logged
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))


class Tokens(torch.nn.Module):
    """A tagger in float64: one loss per token; labels (B, T) with -100 where there is no target."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 3, dtype=torch.float64)

    def forward(self, x, labels=None):
        logits = self.layer(x)
        loss = None
        if labels is not None:
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        return type("Output", (), {"loss": loss, "logits": logits})


def ragged_batches():
    """Seven batches of one row with very different numbers of targets; windows of 3 leave a last window of 1."""
    generator = torch.Generator().manual_seed(2)
    batches = []
    for targets in (9, 1, 4, 2, 8, 8, 3):
        labels = torch.randint(0, 3, (1, 9), generator=generator)
        labels[:, targets:] = -100
        batches.append({"x": torch.randn(1, 9, 4, generator=generator, dtype=torch.float64), "labels": labels})
    return batches


def merged(batches):
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize("loss_function", [None, summed_cross_entropy])
def test_accumulation_equals_the_big_batch_with_unequal_counts_and_a_short_last_window(loss_function):
    results = []
    small = ragged_batches()
    big = [merged(small[:3]), merged(small[3:6]), merged(small[6:])]
    for batches, accumulation in ((small, 3), (big, 1)):
        model = Tokens()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        history = train(model, batches, optimizer, LoopConfig(6, accumulation=accumulation), None, loss_function)
        results.append((model, history))
    (model, history), (reference, reference_history) = results
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert (p - q).abs().max() <= 1e-14
    for mine, theirs in zip(history, reference_history, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-6)


def test_summed_cross_entropy_is_the_mean_of_its_window():
    logits, labels = torch.randn(2, 5, 3), torch.tensor([[0, 1, 2, -100, -100], [1, -100, -100, -100, -100]])
    outputs = type("Output", (), {"logits": logits})
    expected = torch.nn.functional.cross_entropy(logits.view(-1, 3), labels.view(-1))
    assert torch.allclose(summed_cross_entropy(outputs, labels, 4), expected)


def test_causal_models_do_not_count_position_zero():
    batch = {"labels": torch.tensor([[5, 6, -100], [7, -100, -100]])}
    model = torch.nn.Linear(1, 1)
    assert loop.count_targets(model, batch) == 3
    model.loss_type = "ForCausalLM"
    assert loop.count_targets(model, batch) == 1


@pytest.mark.parametrize("max_norm", [0.1, 1e9, float("inf")])
def test_clip_equals_torch(max_norm):
    model = tiny_run.TinyClassifier()
    model(torch.randn(8, 6), labels=torch.zeros(8, dtype=torch.long)).loss.backward()
    other = copy.deepcopy(model)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        q.grad = p.grad.clone()
    ours = clip_grad_norm(model.parameters(), max_norm)
    assert torch.equal(ours, torch.nn.utils.clip_grad_norm_(other.parameters(), max_norm))
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_each_step_uses_its_own_gradient_only():
    batches = ragged_batches()[:2]
    model, reference = Tokens(), Tokens()
    train(model, batches, torch.optim.SGD(model.parameters(), lr=0.1), LoopConfig(2, max_grad_norm=0.0))
    for batch in batches:
        gradients = torch.autograd.grad(reference(**batch).loss, list(reference.parameters()))
        with torch.no_grad():
            for p, g in zip(reference.parameters(), gradients, strict=True):
                p -= 0.1 * g
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert (p - q).abs().max() <= 1e-14


def test_clip_without_gradients():
    assert clip_grad_norm([torch.nn.Parameter(torch.ones(1))], 1.0).item() == 0.0


def test_one_scheduler_step_per_optimizer_step():
    model, optimizer, scheduler, batches = tiny_run.build()
    history = train(model, batches, optimizer, LoopConfig(4, accumulation=3), scheduler)
    assert [record["learning_rate"] for record in history][:3] == pytest.approx([0.0, 0.05 / 3, 0.1 / 3])


def test_evaluation_is_called_and_dropout_comes_back():
    model, optimizer, _, batches = tiny_run.build()
    model.eval()  # from_pretrained returns models in evaluation mode
    modes = []
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    rows = tiny_run.make_rows()
    held_out = [tiny_run.collate(rows[i : i + 8], noise=False) for i in range(0, len(rows), 8)]
    config = LoopConfig(5, eval_every=2)
    history = train(model, batches, optimizer, config, evaluate=lambda: evaluate(model, held_out))
    assert [record["step"] for record in history if "eval_accuracy" in record] == [2, 4, 5]
    passes = [False] * len(held_out)
    assert modes == [True, True, *passes, True, True, *passes, True, *passes]


def test_evaluate_equals_sklearn_and_does_not_average_batch_means():
    from sklearn.metrics import accuracy_score, f1_score

    model, rows = tiny_run.TinyClassifier(), tiny_run.make_rows(35)
    batches = [tiny_run.collate(rows[i : i + 8], noise=False) for i in range(0, 35, 8)]
    whole = tiny_run.collate(rows, noise=False)
    model.eval()
    logits, labels = predict(model, batches)
    assert not model.training and torch.allclose(logits, model(whole["x"]).logits)
    result = evaluate(model, batches)
    assert result["loss"] == pytest.approx(model(**whole).loss.item(), rel=1e-6)
    assert result["accuracy"] == pytest.approx(accuracy_score(labels, logits.argmax(-1)))
    assert result["macro_f1"] == pytest.approx(f1_score(labels, logits.argmax(-1), average="macro"))
    assert macro_f1(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 4) == pytest.approx((2 / 3 + 2 / 3) / 4)


@pytest.mark.parametrize("loss_function", [None, summed_cross_entropy])
def test_a_micro_batch_without_targets_adds_nothing(loss_function):
    """Its mean is 0/0; the window's loss and gradients are those of the micro-batch that has targets."""
    rows = tiny_run.collate(tiny_run.make_rows(8), noise=False)
    empty = rows | {"labels": torch.full_like(rows["labels"], -100)}
    losses = []
    for window in ([rows], [rows, empty], [empty, rows]):
        torch.manual_seed(0)
        model = tiny_run.TinyClassifier(dropout=0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        config = LoopConfig(1, accumulation=len(window))
        (record,) = train(model, window, optimizer, config, loss_function=loss_function)
        losses.append((record["loss"], record["grad_norm"]))
    assert losses[1] == pytest.approx(losses[0]) and losses[2] == pytest.approx(losses[0])


@pytest.mark.parametrize("loss_function", [None, summed_cross_entropy])
def test_a_window_without_targets_is_refused(loss_function):
    rows = tiny_run.collate(tiny_run.make_rows(8), noise=False)
    empty = rows | {"labels": torch.full_like(rows["labels"], -100)}
    model, optimizer, _, _ = tiny_run.build()
    before = model.layers[0].weight.detach().clone()
    with pytest.raises(ValueError, match="step 1 .*no target.*; allowed: ") as error:
        train(model, [empty, empty], optimizer, LoopConfig(1, accumulation=2), loss_function=loss_function)
    assert "\n" not in str(error.value) and torch.equal(model.layers[0].weight, before)


def test_shuffled_batches_cover_each_epoch_in_another_order():
    batches = ShuffledBatches(list(range(10)), 4, list, seed=1)
    first, second = list(batches), list(batches)
    assert len(batches) == 3 and [len(batch) for batch in first] == [4, 4, 2]
    assert sorted(sum(first, [])) == list(range(10)) == sorted(sum(second, []))
    assert first != second and list(ShuffledBatches(list(range(10)), 4, list, seed=1)) == first
    assert list(ShuffledBatches(list(range(5)), 2, list, shuffle=False)) == [[0, 1], [2, 3], [4]]


def test_batches_of_similar_length_cover_each_epoch_and_find_their_place_again():
    lengths = [1 + 7 * i % 40 for i in range(410)]
    batches = ShuffledBatches(lengths, 4, list, seed=1, lengths=lengths)
    first, second = list(batches), list(batches)
    assert len(batches) == len(first) == 103 and first != second
    assert sorted(sum(first, [])) == sorted(lengths) == sorted(sum(second, []))
    padded = sum(len(batch) * max(batch) for batch in first) / sum(lengths)
    alike = sum(len(batch) * max(batch) for batch in ShuffledBatches(lengths, 4, list, seed=1)) / sum(lengths)
    assert padded < 1.1 < 1.4 < alike
    resumed = ShuffledBatches(lengths, 4, list, lengths=lengths)
    resumed.load_state_dict({"seed": 1, "epoch": 1, "batches_given": 50})
    assert list(resumed) == second[50:]


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"max_steps": 0}, ValueError, "max_steps=0 is out of range; allowed: a whole number >= 1"),
        ({"max_steps": 1.5}, TypeError, "max_steps=1.5 is a float; allowed: a whole number >= 1"),
        ({"max_steps": 1, "accumulation": 0}, ValueError, "accumulation=0 .*allowed"),
        ({"max_steps": 1, "max_grad_norm": -1.0}, ValueError, "max_grad_norm=-1.0 .*allowed"),
        ({"max_steps": 1, "save_every": 1}, ValueError, "folder=None .*allowed"),
    ],
)
def test_bad_settings(options, error, message):
    with pytest.raises(error, match=message):
        LoopConfig(**options)


def test_bad_batches(tmp_path):
    model, optimizer, _, _ = tiny_run.build()
    with pytest.raises(ValueError, match="batches=list is empty"):
        train(model, [], optimizer, LoopConfig(1))
    with pytest.raises(ValueError, match="batches=list has no state_dict"):
        train(model, [1], optimizer, LoopConfig(1, save_every=1, folder=tmp_path))
    with pytest.raises(ValueError, match="batch_size=0"):
        ShuffledBatches([1], 0, list)
    with pytest.raises(ValueError, match="lengths=1 numbers; allowed: one for each of the 2 rows"):
        ShuffledBatches([1, 2], 1, list, lengths=[1])
    with pytest.raises(ValueError, match="shuffle=False .*allowed with lengths: shuffle=True"):
        ShuffledBatches([1, 2], 1, list, shuffle=False, lengths=[1, 2])
