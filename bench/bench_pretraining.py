"""What masked-language-model pretraining buys: the full experiment behind section 9 of lesson 02.

    python bench/bench_pretraining.py          # 20 to 30 minutes on two cores; writes bench/results/pretraining.json
    python bench/bench_pretraining.py --steps 20 --seeds 1 --out /tmp/try.json

The course's encoder is pretrained on the corpus' running text, then compared with the same encoder from random weights:
as fixed features under a linear probe, and fine-tuned with 2,000 and with 12,000 labels. Every seed pretrains anew. The
running text leaves out the files of the test and validation sentences, or the encoder would have read them before.
Word counts (TF-IDF) with a linear model and the same labels say what a score is worth.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import record
import torch
from torch.utils.data import DataLoader
from transformers import DataCollatorForLanguageModeling, DataCollatorWithPadding, set_seed

from course_utils.data import load_classification, load_language_modelling
from course_utils.data.sampling import LengthGroupedBatchSampler
from course_utils.models import load_classifier, load_masked_lm, load_tokenizer
from course_utils.recipes.command_line import Parser, file_to_write, from_to
from course_utils.training.evaluation import macro_f1
from course_utils.training.schedules import make_scheduler

BATCH_SIZE, LEARNING_RATE, MAX_LENGTH = 32, 1e-3, 64
FINE_TUNING_STEPS = {2_000: 375, 12_000: 750}  # 6 epochs and 2 epochs


def batches(rows, collate, seed):
    """Length-grouped batches without end."""
    sampler = LengthGroupedBatchSampler([len(row["input_ids"]) for row in rows], BATCH_SIZE, seed=seed)
    loader = DataLoader(rows, batch_sampler=sampler, collate_fn=collate)
    while True:
        yield from loader
        sampler.set_epoch(sampler.epoch + 1)


def fit(model, loss_of, stream, max_steps):
    """AdamW with linear warm-up over a tenth of the steps and linear decay; returns the losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    scheduler = make_scheduler(optimizer, "linear", max_steps // 10, max_steps)
    model.train()
    losses = []
    for _, batch in zip(range(max_steps), stream, strict=False):
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def masked_loss(model, batch):
    """Cross-entropy at the masked positions; the vocabulary's scores are computed only there."""
    chosen = batch["labels"] != -100
    hidden = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    return torch.nn.functional.cross_entropy(model.decoder(model.head(hidden[chosen])), batch["labels"][chosen])


def pretrain(tokenizer, texts, max_steps, seed):
    """The encoder's weights after masked language modelling (30% of the tokens) on ``texts``, and the losses."""
    rows = [{"input_ids": ids} for ids in tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]]
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3, seed=seed)
    set_seed(seed)
    model = load_masked_lm()
    losses = fit(model, masked_loss, batches(rows, collate, seed), max_steps)
    return model.model.state_dict(), losses


@torch.no_grad()
def run_over(rows, tokenizer, function, width):
    """``function(batch) -> (B, width)`` over all rows, in the rows' order."""
    order = np.argsort([len(row["input_ids"]) for row in rows], kind="stable")
    out = np.zeros((len(rows), width), np.float32)
    for start in range(0, len(order), 100):
        places = order[start : start + 100]
        batch = tokenizer.pad([{"input_ids": rows[i]["input_ids"]} for i in places], return_tensors="pt")
        out[places] = function(batch).numpy()
    return out


def fine_tune(tokenizer, train, test, weights, seed):
    """Scores of a classifier that starts from ``weights`` (None: random), and which test rows it has right."""
    set_seed(seed)
    model = load_classifier(num_labels=10)
    if weights is not None:
        model.model.load_state_dict(weights)
    stream = batches(train, DataCollatorWithPadding(tokenizer), seed)
    fit(model, lambda model, batch: model(**batch).loss, stream, FINE_TUNING_STEPS[len(train)])
    model.eval()
    predicted = torch.from_numpy(run_over(test, tokenizer, lambda batch: model(**batch).logits, 10)).argmax(1)
    labels = torch.tensor([row["label"] for row in test])
    right = (predicted == labels).numpy()
    return {"accuracy": rounded(right.mean()), "macro_f1": rounded(macro_f1(predicted, labels, 10))}, right


def probe(tokenizer, train, test, weights, seed):
    """Like ``fine_tune``, for logistic regression on the mean of the last hidden states; the encoder is not trained."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    set_seed(seed)
    encoder = load_masked_lm().model.eval()
    if weights is not None:
        encoder.load_state_dict(weights)

    def features(batch):
        mask = batch["attention_mask"][..., None]
        return (encoder(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)

    train_x, test_x = (run_over(rows, tokenizer, features, encoder.config.hidden_size) for rows in (train, test))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    model.fit(train_x, [row["label"] for row in train])
    right = model.predict(test_x) == np.array([row["label"] for row in test])
    return {"accuracy": rounded(right.mean())}, right


def word_counts(train, test):
    """Test accuracy of a linear model on TF-IDF features, fitted on the rows of ``train``: no network at all."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2), LinearSVC(C=0.3))
    return rounded(model.fit(train["text"], train["label"]).score(test["text"], test["label"]))


def text_without(data, splits=("validation", "test")):
    """The corpus' paragraphs without the files of these ``splits`` of ``data``: their sentences stand in them."""
    held_out = set().union(*(data[split]["file"] for split in splits))
    rows = load_language_modelling()["train"].filter(lambda row: row["file"] not in held_out)
    assert not set(rows["file"]) & held_out
    assert not set(rows["text"]) & set(data["test"]["text"])  # 656 sentences, were the files left in
    return list(rows["text"])


def compared(right):
    """Per setting: the mean gain of pretraining, and its standard error from the test rows.

    Args:
        right: ``{(task, labels, start): [(N,) bool per seed]}``, which of the N test rows were right.

    Returns:
        A list of dictionaries. The error is that of a mean over N rows, each row's gain averaged over the seeds: both
        starts are tested on the same rows, so only rows on which they disagree contribute.
    """
    rows = []
    for task, labels in dict.fromkeys(setting[:2] for setting in right):
        start = {name: np.array(right[task, labels, name], float) for name in ("random", "pretrained")}
        gain = start["pretrained"].mean(0) - start["random"].mean(0)
        error = gain.std(ddof=1) / len(gain) ** 0.5
        rows.append({"task": task, "labels": labels, "gain": rounded(gain.mean()), "standard_error": rounded(error)})
    return rows


def rounded(value) -> float:
    """Four digits: more would be read as precision."""
    return round(float(value), 4)


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=from_to(1), default=2000, help="optimizer steps of pretraining")
    parser.add_argument("--seeds", type=from_to(1), default=3, help="runs per setting, each with its own pretraining")
    parser.add_argument("--out", type=file_to_write, default=Path(__file__).parent / "results" / "pretraining.json")
    arguments = parser.parse_args()

    tokenizer, data = load_tokenizer(), load_classification()
    made = {split: tokenizer(list(data[split]["text"]), truncation=True, max_length=MAX_LENGTH) for split in data}
    rows = {
        split: [
            {"input_ids": i, "label": y} for i, y in zip(made[split]["input_ids"], data[split]["label"], strict=True)
        ]
        for split in ("train", "test")
    }
    text = text_without(data)
    report = {
        "machine": {
            "processor": record.processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "python": platform.python_version(), "torch": torch.__version__,
        },
        "pretraining": {"steps": arguments.steps, "batch_size": BATCH_SIZE, "paragraphs": len(text), "runs": []},
        "test_rows": len(rows["test"]),
        "word_counts": {
            labels: word_counts(data["train"].select(range(labels)), data["test"]) for labels in FINE_TUNING_STEPS
        },
        "results": [],
    }  # fmt: skip
    print(json.dumps(report), flush=True)
    right = {}
    for seed in range(arguments.seeds):
        begin, cpu = perf_counter(), process_time()
        weights, losses = pretrain(tokenizer, text, arguments.steps, seed)
        run = {"seed": seed, "cpu_seconds": round(process_time() - cpu), "wall_seconds": round(perf_counter() - begin)}
        run |= {"first_loss": rounded(np.mean(losses[:20])), "last_loss": rounded(np.mean(losses[-50:]))}
        report["pretraining"]["runs"].append(run)
        print(run, flush=True)
        for labels in FINE_TUNING_STEPS:
            train = rows["train"][:labels]
            for task, function in {"linear probe": probe, "fine-tuning": fine_tune}.items():
                if (task, labels) == ("linear probe", 12_000):
                    continue  # the question of a probe is what the features hold, few labels show it
                for start, given in (("random", None), ("pretrained", weights)):
                    scores, correct = function(tokenizer, train, rows["test"], given, seed)
                    right.setdefault((task, labels, start), []).append(correct)
                    report["results"].append({"task": task, "labels": labels, "start": start, "seed": seed} | scores)
                    print(report["results"][-1], flush=True)
    report["compared"] = compared(right)
    record.write(arguments.out, report)


if __name__ == "__main__":
    main()
