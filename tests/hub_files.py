"""What the test hub serves: tiny models and data sets under the real names, with the real files and columns."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = ["a", "good", "film", "bad", "dull", "story", "bright", "slow", "clear", "answer", "question", "write", "three"]
GLUE = "nyu-mll/glue"
SST2 = "stanfordnlp/sst2"
DOLLY = "databricks/databricks-dolly-15k"

LABELS = """
  - name: label
    dtype:
      class_label:
        names:
          '0': negative
          '1': positive
"""


SIZES = {"train": 60, "validation": 40, "test": 10}


def sst2_rows(split: str) -> list[dict]:
    """Rows with SST-2's columns ``idx``, ``sentence``, ``label``, of 3 to 13 words; the test rows have no label."""
    rows = []
    for index in range(SIZES[split]):
        words = [WORDS[(index * step) % len(WORDS)] for step in range(1, 2 + index % 11)]
        label = -1 if split == "test" else int(WORDS[0] in words)  # can be learnt; the classes are unequal
        rows.append({"idx": index, "sentence": f"{split} {' '.join(words)} {index} ", "label": label})
    return rows


def dolly_rows() -> list[dict]:
    """120 rows with Dolly's columns; every fourth one shares a passage with others."""
    return [
        {
            "instruction": f"write {index}",
            "context": f"passage {index % 5}" if index % 4 == 0 else "",
            "response": f"answer {index}\nwith a second line",
            "category": "open_qa",
        }
        for index in range(120)
    ]


def write_datasets(root: Path) -> None:
    """``root/datasets``: SST-2 (parquet), GLUE with SST-2 as a configuration, Dolly (JSON lines)."""
    rows = {split: sst2_rows(split) for split in SIZES}
    _write_sst2(root, SST2, "data", rows)
    _write_sst2(root, GLUE, "sst2", rows)
    _write_dolly(root, dolly_rows())


def _write_sst2(root: Path, name: str, folder: str, rows: dict[str, list[dict]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("idx", pa.int32()), ("sentence", pa.string()), ("label", pa.int64())])
    repo = root / "datasets" / name
    (repo / folder).mkdir(parents=True)
    for split in SIZES:
        pq.write_table(pa.Table.from_pylist(rows[split], schema), repo / folder / f"{split}-00000-of-00001.parquet")
    (repo / "README.md").write_text(_card("sst2" if name == GLUE else "default", folder))


def _write_dolly(root: Path, rows: list[dict]) -> None:
    repo = root / "datasets" / DOLLY
    repo.mkdir(parents=True)
    (repo / "databricks-dolly-15k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_real_text(root: Path) -> None:
    """``root`` for whole lessons: the course's own sentences under the hub's names, two classes, small models.

    Lessons measure what they claim, so they need text as uneven as real text is, and enough of it.
    """
    from course_utils.data import load_classification, load_instructions
    from course_utils.models import load_tokenizer

    local = load_classification("local")
    columns = {split: zip(rows["text"], rows["label"], strict=True) for split, rows in local.items()}
    rows = {
        split: [{"idx": i, "sentence": text, "label": label % 2} for i, (text, label) in enumerate(pairs)]
        for split, pairs in columns.items()
    }
    _write_sst2(root, SST2, "data", rows)
    pairs = load_instructions("local")["train"].select(range(3000))
    names = {"instruction": "instruction", "input": "context", "output": "response"}
    _write_dolly(root, [{names[name]: pair[name] for name in names} | {"category": "open_qa"} for pair in pairs])
    write_models(root, load_tokenizer("local"), hidden=32, causal_tokenizer=_like_qwen())


def _like_qwen():
    """A byte-level tokenizer with what Qwen3's has and has not: an end of turn, no begin token, no {% generation %}."""
    from tokenizers import processors

    from course_utils.models.chat_tokenizer import load_chat_tokenizer

    tokenizer = load_chat_tokenizer("local")
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.bos_token = None
    template = tokenizer.chat_template.replace("{{- bos_token }}", "")
    for mark in ("{%- generation %}", "{%- endgeneration %}"):
        template = template.replace(mark, "")
    tokenizer.chat_template = template
    return tokenizer


def _card(config: str, folder: str) -> str:
    """A dataset card: its YAML head names configuration, features and files."""
    files = "".join(f"  - split: {split}\n    path: {folder}/{split}-*\n" for split in ("train", "validation", "test"))
    features = f"  features:\n  - name: idx\n    dtype: int32\n  - name: sentence\n    dtype: string{LABELS}"
    head = (
        f"dataset_info:\n- config_name: {config}\n{features}configs:\n- config_name: {config}\n  data_files:\n{files}"
    )
    return f"---\n{head}---\n# Sentences written for this test\n"


def write_models(root: Path, tokenizer=None, hidden: int = 16, causal_tokenizer=None) -> None:
    """``root/models``: DistilBERT with its masked-LM head (float32), Qwen3 (bfloat16): random weights, a tokenizer."""
    import torch
    import transformers as tf

    torch.manual_seed(0)
    tokenizer = tokenizer or _tokenizer()
    causal_tokenizer = causal_tokenizer or tokenizer
    size = max(len(tokenizer), len(causal_tokenizer))  # as in life: Qwen3's vocabulary is the larger one
    bert = tf.DistilBertConfig(
        vocab_size=size, dim=hidden, hidden_dim=2 * hidden, n_layers=1, n_heads=2, max_position_embeddings=512
    )
    qwen = tf.Qwen3Config(
        vocab_size=size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    models = {
        "distilbert/distilbert-base-uncased": tf.DistilBertForMaskedLM(bert),
        "Qwen/Qwen3-0.6B": tf.Qwen3ForCausalLM(qwen).to(torch.bfloat16),
    }
    for name, model in models.items():
        model.save_pretrained(root / "models" / name)
        (causal_tokenizer if "Qwen" in name else tokenizer).save_pretrained(root / "models" / name)


def _tokenizer():
    import tokenizers
    from tokenizers import models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    vocabulary = {word: number for number, word in enumerate([*special.values(), *WORDS])}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    names = {f"{role}_token": token for role, token in special.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names)
