"""Lessons, decks and course_utils only use keyword arguments that the installed Hugging Face libraries have."""

from __future__ import annotations

import textwrap

import pytest

from course_utils.authoring.build import ROOT, targets
from tests.lessons.api_arguments import problems

SOURCES = [*targets(), *sorted((ROOT / "course_utils").rglob("*.py")), *sorted((ROOT / "bench").glob("*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_keyword_argument_exists(path):
    assert problems(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("from transformers import TrainingArguments as A\nA(evaluation_strategy='epoch')", "evaluation_strategy"),
        ("import transformers\ntransformers.TrainingArguments(logging_dir='x')", "logging_dir"),
        ("import transformers as t\nt.TrainingArguments('x', warmup_ratio=0.1)", "warmup_ratio"),
        ("from transformers import Trainer\nTrainer(model=m, tokenizer=t)", "Trainer(tokenizer=)"),
        ("from transformers import Trainer\nclass T(Trainer):\n    pass\nT(tokenizer=t)", "Trainer(tokenizer=)"),
        (
            "from transformers import Trainer\nclass T(Trainer):\n    def __init__(self):\n"
            "        super().__init__(tokenizer=3)",
            "__init__(tokenizer=)",
        ),
        ("from transformers import TrainingArguments as A\ncommon = dict(no_cuda=True)\nA(**common)", "no_cuda"),
        (
            "from transformers import TrainingArguments as A\na = {'no_cuda': 1}\nb = {**a, 'seed': 1}\nA(**b, seed=3)",
            "no_cuda",
        ),
        (
            "def f():\n    from transformers import AutoModel\n    AutoModel.from_pretrained('x', torch_dtype='auto')",
            "today: dtype",
        ),
        ("from transformers import AutoTokenizer\nAutoTokenizer.from_pretrained('x', use_auth_token=1)", "token"),
        ("from transformers import Trainer\nt = Trainer()\nt.train(resume=True)", "Trainer.train(resume=)"),
        ("def f(trainer):\n    trainer.evaluate(dataset=3)", "Trainer.evaluate(dataset=)"),
        ("from accelerate import Accelerator\nAccelerator(fp16=True)", "Accelerator(fp16=)"),
        ("from accelerate import Accelerator\nwith Accelerator() as a:\n    a.prepare(x, where=1)", "prepare(where=)"),
        ("from datasets import Dataset\nDataset.from_dict({}).map(f, batch=True)", "Dataset.map(batch=)"),
        ("rows.map(f, batch=True)", "Dataset.map(batch=)"),
        ("from datasets import load_dataset\nload_dataset('x', use_auth_token=True)", "load_dataset(use_auth_token=)"),
        ("from peft import LoraConfig\nLoraConfig(rank=8)", "LoraConfig(rank=)"),
        ("import evaluate\nevaluate.load('accuracy', use_auth_token=1)", "load(use_auth_token=)"),
        ("from transformers import AdamW", "transformers has no AdamW"),
        (
            "from functools import partial\nfrom transformers import Trainer\npartial(Trainer, tokenizer=1)",
            "Trainer(tokenizer=)",
        ),
        ("from transformers import TrainingArguments as A\nA(gradient_checkpointing=True)", "gradient_checkpointing"),
    ],
)
def test_a_planted_old_spelling_is_noticed(source, message):
    assert message in "\n".join(problems(source))


@pytest.mark.parametrize(
    "source",
    [
        "from transformers import TrainingArguments as A\nA(output_dir='x', eval_strategy='epoch', **unknown)",
        "from transformers import Trainer\nTrainer(model=m, processing_class=t).train(resume_from_checkpoint=True)",
        "from transformers import AutoConfig\nAutoConfig.for_model('modernbert', hidden_size=3, anything=4)",
        "def f(tokenizer):\n    return tokenizer('x', truncation=True, return_tensors='pt')",
        "from somewhere import Trainer\nTrainer(tokenizer=1)",
        "class Trainer:\n    pass\nTrainer(tokenizer=1)",
        "pool.map(f, rows, chunksize=8)",
        "rows.map(f, batched=True, remove_columns=['a'])\nbatches.filter(f, input_columns='a')",
    ],
)
def test_present_spellings_and_other_libraries_pass(source):
    assert problems(source) == []


def test_an_old_spelling_may_be_shown_failing():
    source = """
    from transformers import TrainingArguments
    try:
        TrainingArguments(evaluation_strategy="epoch")
    except TypeError as error:
        print(error)
    """
    assert problems(textwrap.dedent(source)) == []
