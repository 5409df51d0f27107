"""The generating Trainer: its predictions are token ids, and -100 never reaches the tokenizer."""

import numpy as np
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, set_seed

from course_utils.models.seq2seq import small_seq2seq, word_tokenizer
from course_utils.training.generation import as_text, generation_trainer


def test_it_learns_to_copy_two_words_and_writes_them(tmp_path, capsys):
    set_seed(0)
    tokenizer = word_tokenizer(("a", "b", "c"))
    texts = ["a b", "b", "c a", "c"]
    columns = {**tokenizer(texts), "labels": tokenizer(texts)["input_ids"]}
    rows, model = Dataset.from_dict(dict(columns)), small_seq2seq(len(tokenizer), d_model=32)
    seen = []

    def compute_metrics(prediction):
        seen.append((as_text(tokenizer, prediction.predictions), as_text(tokenizer, prediction.label_ids)))
        return {"right": float(np.mean([p == r for p, r in zip(*seen[-1], strict=True)]))}

    trainer = generation_trainer(
        model,
        tmp_path,
        rows,
        rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        compute_metrics=compute_metrics,
        max_steps=60,
        learning_rate=5e-3,
        per_device_train_batch_size=4,
        generation_max_length=6,
        use_cpu=True,
    )
    trainer.train()
    assert trainer.evaluate()["eval_right"] == 1.0 and seen[-1][1] == texts
    assert "eval" not in capsys.readouterr().out


def test_padding_is_left_out():
    tokenizer = word_tokenizer(("a", "b"))
    assert as_text(tokenizer, [[1, 4, 5, 2, -100], [4, 2, 0, 0, 0]]) == ["a b", "a"]
