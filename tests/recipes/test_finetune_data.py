"""Rows as finetune trains on them: one end token whatever the tokenizer adds, classes, long texts, a closed cache."""

import errno
import json
import tempfile
from types import SimpleNamespace

import pytest
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from course_utils.recipes import finetune
from course_utils.recipes.finetune_data import _encode_text, fingerprint, load_rows, tokenize
from course_utils.recipes.finetune_model import load_words
from tests.recipes.refused import refusal

PLAIN = ["the", "red", "cat", "runs", "slowly"]
WORDS = ["<pad>", "<s>", "</s>", "<unk>", *PLAIN, *(f"▁{word}" for word in PLAIN)]
ADDED = {"bos": "<s> $A", "eos": "$A </s>", "both": "<s> $A </s>", "neither": None}


def words(adds, prefix_space=False):
    """A tokenizer of whole words that adds a begin token, an end token, both or neither."""
    model = models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    space = pre_tokenizers.Metaspace(prepend_scheme="always") if prefix_space else pre_tokenizers.WhitespaceSplit()
    tokenizer.pre_tokenizer = space
    if template := ADDED[adds]:
        tokens = [(token, WORDS.index(token)) for token in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=tokens)
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def encoded(tokenizer, row, max_length=64):
    config = SimpleNamespace(task="causal_lm", max_length=max_length)
    (done,) = tokenize(DatasetDict(train=Dataset.from_list([row])), tokenizer, config)["train"]
    return done


ROW = {"prompt": "the red cat", "completion": " runs slowly"}


@pytest.mark.parametrize("prefix_space", [False, True])
@pytest.mark.parametrize("adds", ADDED)
def test_one_end_token_at_the_end_and_no_second_begin_token(adds, prefix_space):
    tokenizer = words(adds, prefix_space)
    begin = ["<s>"] if adds in ("bos", "both") else []
    mark = "▁" if prefix_space else ""
    prompt, answer = ([mark + word for word in text.split()] for text in ROW.values())
    done = encoded(tokenizer, ROW)
    assert tokenizer.convert_ids_to_tokens(done["input_ids"]) == [*begin, *prompt, *answer, "</s>"]
    learnt = [token for token, label in zip(done["input_ids"], done["labels"], strict=True) if label != -100]
    assert tokenizer.convert_ids_to_tokens(learnt) == [*answer, "</s>"]
    done = encoded(tokenizer, {"text": "the red cat"})
    assert tokenizer.convert_ids_to_tokens(done["input_ids"]) == [*begin, *prompt, "</s>"]


@pytest.mark.parametrize("prefix_space", [False, True])
@pytest.mark.parametrize("adds", ["bos", "neither"])  # TRL itself gives the others two end tokens
def test_the_columns_and_the_rule_are_trls(adds, prefix_space):
    from trl import SFTConfig, SFTTrainer

    from course_utils.models import load_causal_lm

    tokenizer = words(adds, prefix_space)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"use_cpu": True, "bf16": False, "report_to": "none", "output_dir": folder, "max_length": 64}
        trainer = SFTTrainer(
            load_causal_lm(vocab_size=16), SFTConfig(**settings), train_dataset=Dataset.from_list([ROW]),
            processing_class=tokenizer,
        )  # fmt: skip
        batch = trainer.data_collator([trainer.train_dataset[0]])
    done = encoded(tokenizer, ROW)
    assert batch["input_ids"][0].tolist() == done["input_ids"]
    assert batch["labels"][0].tolist() == done["labels"]


def test_the_courses_causal_tokenizer_ends_an_answer():
    tokenizer = load_words(finetune.Config(task="causal_lm", model_name_or_path="course/causal"))
    done = encoded(tokenizer, {"prompt": "Add two tensors.", "completion": " torch"})
    tokens = tokenizer.convert_ids_to_tokens(done["input_ids"])
    assert tokens[-1] == "[SEP]" and tokens.count("[SEP]") == tokens.count("[CLS]") == 1
    assert tokenizer.eos_token_id == 3  # as the model's configuration says


def test_of_a_long_text_only_the_beginning_is_tokenised():
    tokenizer, seen = words("both"), []
    encode = tokenizer._encode_plus
    tokenizer._encode_plus = lambda text, *rest, **options: (seen.append(len(text)), encode(text, *rest, **options))[1]
    text = "the red cat runs slowly " * 20_000
    for row in ({"text": text}, {"prompt": text, "completion": text}, {"text": "the" * 100_000}):
        whole = tokenizer.backend_tokenizer.encode("".join(row.values())).ids
        seen.clear()
        tokens = _encode_text(row, tokenizer, 12)["input_ids"]
        assert tokens == (whole[:12] if len(whole) > 12 else whole)
        assert seen and (max(seen) < 10_000 or len(whole) < 12), "one endless word is the only reason to read it all"


def test_an_evaluation_file_is_checked_and_named(run, project, tmp_path, capsys):
    def refused(rows):
        file = tmp_path / "eval.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = [f"--eval_file={file}", "--eval_strategy=steps", "--max_steps=1"]
        sentence = refusal(capsys, lambda: run(*options, task="classification"))
        assert sentence.startswith(f"error: eval_file='{file}', row 2 has ") and not (tmp_path / "out").exists()
        return sentence

    assert "no label" in refused([{"text": "a", "label": "long"}, {"text": "a"}])
    assert "label=null" in refused([{"text": "a", "label": "long"}, {"text": "a", "label": None}])


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"text": ["a", None], "label": [0, 1]}, "the train split, row 2, has text=None"),
        ({"text": ["a", "b"], "label": [0, None]}, "the train split, row 2, has label=None"),
        ({"text": [1, 2], "label": [0, 1]}, "the train split's text is of type"),
        ({"text": ["a", "b"], "label": [0.5, 1.0]}, "the train split's label is of type"),
        ({"text": ["a", "b"], "label": ["x", "x"]}, "has one class only, 'x'"),
        ({"txt": ["a", "b"]}, "has the columns ['txt']"),
    ],
)
def test_a_data_set_in_a_folder_is_checked_too(columns, words, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    Dataset.from_dict(columns).to_parquet(folder / "train.parquet")
    config = finetune.Config(dataset_name=str(folder))
    with pytest.raises(ValueError) as caught:
        load_rows(config)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_would_be_taken_for_a_pattern_is_refused(tmp_path):
    (tmp_path / "data[1]").mkdir()
    with pytest.raises(ValueError, match="would be read as a pattern"):
        finetune.Config(dataset_name=str(tmp_path / "data[1]"))


def test_a_cache_that_is_intact_and_read_only_is_enough(monkeypatch):
    """A map writes beside the table: there, as the disk were mounted read-only."""
    from course_utils.data.cache import cache_folder

    config = finetune.Config(task="classification", max_length=17)  # a length that no other test has cached
    splits = load_rows(config)
    real = tempfile.NamedTemporaryFile

    def closed(*arguments, dir=None, **options):
        if dir and str(dir).startswith(str(cache_folder())):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(*arguments, dir=dir, **options)

    few = DatasetDict({name: split.select(range(20)) for name, split in splits.items()})
    expected = tokenize(few, load_words(config), config)["train"][:]
    config.max_length = 18
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", closed)
    found = tokenize(few, load_words(config), config)["train"]
    assert found["labels"][:] == expected["labels"] and not found.cache_files[1:]


def test_a_fingerprint_tells_rows_their_order_and_their_labels():
    rows = {"input_ids": [[1, 2], [3]], "labels": [[1, 2], [3]]}
    same = fingerprint(Dataset.from_dict(rows))
    assert same == fingerprint(Dataset.from_dict(rows | {"attention_mask": [[1, 1], [1]]}))
    others = [{"input_ids": [[1], [2, 3]]}, {"labels": [[1, -100], [3]]}, {"input_ids": [[3], [1, 2]]}]
    assert len({same, *(fingerprint(Dataset.from_dict(rows | other)) for other in others)}) == 4
    table = Dataset.from_dict({"input_ids": [[0], [1, 2], [3], [4]], "labels": [[0], [1, 2], [3], [4]]})
    assert (
        fingerprint(table.select([1, 2])) == same == fingerprint(table.filter(lambda row: row["labels"][0] in (1, 3)))
    )
