"""Every object with a generator of its own: saved and restored bitwise, or refused in one sentence."""

import functools
import io
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from course_utils.data.batches import ShuffledBatches
from course_utils.data.collators import SpanCorruptionCollator, add_sentinels
from course_utils.training.checkpoint import CheckpointError, latest_checkpoint
from course_utils.training.generators import NotRestorable, load_generators, save_generators
from course_utils.training.loop import LoopConfig, train
from course_utils.training.optim import AdamW
from tests.training import tiny_run

DRAWS = {  # a new generator -> one number
    "torch": (lambda: torch.Generator().manual_seed(3), lambda g: torch.randn((), generator=g).item()),
    "numpy": (lambda: np.random.default_rng(3), lambda g: g.normal()),
    "numpy, Mersenne twister": (lambda: np.random.Generator(np.random.MT19937(3)), lambda g: g.normal()),
    "numpy, Philox": (lambda: np.random.Generator(np.random.Philox(3)), lambda g: g.integers(9)),
    "numpy (old)": (lambda: np.random.RandomState(3), lambda g: g.randn()),
    "python": (lambda: random.Random(3), lambda g: g.gauss(0, 1)),
}


class Lazy:
    """Makes its generator at the first draw, as transformers' masking collator does."""

    def __init__(self, make, draw):
        self.make, self.draw, self.generator = make, draw, None

    def __call__(self, rows=()):
        if self.generator is None:
            self.generator = self.make()
        return float(self.draw(self.generator))


class Slotted:
    __slots__ = ("parts",)

    def __init__(self, make, draw):
        self.parts = [1, {"noise": Lazy(make, draw)}]

    def draw_now(self):
        return self.parts[1]["noise"]()


def closed_over(make, draw):
    generator = make()
    return lambda: float(draw(generator))


HOLDERS = {
    "an attribute made at the first draw": Lazy,
    "a bound method, slots, a list, a dict": lambda make, draw: Slotted(make, draw).draw_now,
    "a closure": closed_over,
    "a partial": lambda make, draw: functools.partial(draw, make()),
}


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("holder", HOLDERS)
def test_every_kind_in_every_place_goes_on_where_it_was(kind, holder):
    first = HOLDERS[holder](*DRAWS[kind])
    for _ in range(3):
        first()
    file = io.BytesIO()
    torch.save(save_generators({"batches": first}), file)
    file.seek(0)
    wanted = [first() for _ in range(5)]
    other = HOLDERS[holder](*DRAWS[kind])
    load_generators(torch.load(file, weights_only=True), {"batches": other})
    assert [other() for _ in range(5)] == wanted


@pytest.fixture(scope="module")
def span_run():
    """The loop on T5's batches, whose collator draws from a generator of its own."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[SEP]", *(f"w{i}" for i in range(40))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", sep_token="[SEP]")
    sentinels = add_sentinels(tokenizer, 10)
    rows = [{"input_ids": list(range(3, 13 + i))} for i in range(16)]

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = torch.nn.Embedding(len(tokenizer), 8), torch.nn.Linear(8, len(tokenizer))

        def forward(self, input_ids, attention_mask, labels):
            mean = self.table(input_ids).mean(1, keepdim=True).expand(-1, labels.shape[1], -1)
            logits = self.out(mean)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
            return SimpleNamespace(loss=loss, logits=logits)

    def run(folder, steps, resume=False):
        torch.manual_seed(0)
        model = Model()
        batches = ShuffledBatches(rows, 4, SpanCorruptionCollator(tokenizer, sentinels, seed=5))
        config = LoopConfig(steps, save_every=4, folder=folder, resume=resume)
        history = train(model, batches, AdamW(model.parameters(), lr=0.1), config)
        return model.state_dict(), [record["loss"] for record in history]

    return run


def test_a_run_with_a_drawing_collator_resumes_bitwise(span_run, tmp_path):
    weights, losses = span_run(tmp_path / "whole", 8)
    _, before = span_run(tmp_path / "parts", 4)
    resumed, after = span_run(tmp_path / "parts", 8, resume=True)
    assert before + after == losses and len(set(losses)) == 8
    assert all(torch.equal(value, weights[name]) for name, value in resumed.items())


class Noisy(tiny_run.TinyClassifier):
    """A model that draws its own noise."""

    def __init__(self):
        super().__init__()
        self.noise = np.random.default_rng(1)

    def forward(self, x, labels=None):
        return super().forward(x + 0.1 * float(self.noise.normal()), labels)


class Weighted:
    """A loss function that draws."""

    def __init__(self):
        self.draws = random.Random(7)

    def __call__(self, outputs, labels, num_items_in_batch):
        total = torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
        return self.draws.random() * total / num_items_in_batch


class Augmented:
    """A data set that draws for each row."""

    def __init__(self):
        self.rows, self.rng = tiny_run.make_rows(), torch.Generator().manual_seed(2)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        x, label = self.rows[number]
        return x + torch.randn(6, generator=self.rng), label


def drawing_run(folder, steps, resume=False):
    torch.manual_seed(0)
    model = Noisy()
    batches = ShuffledBatches(Augmented(), 4, functools.partial(tiny_run.collate, noise=False))
    config = LoopConfig(steps, save_every=3, folder=folder, resume=resume)
    optimizer = AdamW(model.parameters(), lr=0.01)
    return [record["loss"] for record in train(model, batches, optimizer, config, loss_function=Weighted())]


def test_data_set_model_and_loss_function_resume_bitwise(tmp_path):
    whole = drawing_run(tmp_path / "whole", 6)
    assert drawing_run(tmp_path / "parts", 3) + drawing_run(tmp_path / "parts", 6, resume=True) == whole


class OverLoader:
    """Batches from a DataLoader, with a position; its workers draw from copies of the collator."""

    def __init__(self, collate, workers):
        self.loader = DataLoader([1, 2], collate_fn=collate, num_workers=workers)

    def __iter__(self):
        return iter(self.loader)

    def state_dict(self):
        return {}


def test_what_cannot_be_saved_is_said_before_the_first_step(tmp_path):
    model, optimizer, _, _ = tiny_run.build()
    config = LoopConfig(2, save_every=2, folder=tmp_path)
    drawing = HOLDERS["a closure"](*DRAWS["numpy"])
    with pytest.raises(CheckpointError, match=r"batches.loader.collate_fn.*workers.*allowed: num_workers=0") as error:
        train(model, OverLoader(drawing, 2), optimizer, config)
    assert "\n" not in str(error.value) and latest_checkpoint(tmp_path) is None and not list(tmp_path.iterdir())
    assert save_generators({"batches": OverLoader(drawing, 0)})
    assert not save_generators({"batches": OverLoader(len, 2)})
    with pytest.raises(NotRestorable, match="SystemRandom, which has no state"):
        save_generators({"batches": [random.SystemRandom()]})


def test_other_objects_than_the_saved_ones_are_refused():
    lazy = Lazy(*DRAWS["torch"])
    assert save_generators({"batches": lazy}) == {}
    lazy()
    saved = save_generators({"batches": lazy})
    with pytest.raises(NotRestorable, match=r"no generator batches.generator; allowed: objects built as the run did"):
        load_generators(saved, {"batches": object()})
    other = Lazy(*DRAWS["numpy"])
    other()
    with pytest.raises(NotRestorable, match="is a Generator and was of kind 'torch'"):
        load_generators(saved, {"batches": other})
    with pytest.raises(NotRestorable, match="holds no state of batches.generator"):
        load_generators({}, {"batches": lazy})
