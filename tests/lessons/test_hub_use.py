"""What a lesson fetches from the hub is read off its source; no lesson is executed here."""

from __future__ import annotations

import inspect

import pytest

from course_utils import data, models
from course_utils.hub import HUB_NAMES
from tests.lessons import test_short_runs
from tests.lessons.hub_use import FETCHES, LOCAL, PLACES, fetched, runs_from_the_hub

DATA, MODELS = "from course_utils.data import", "from course_utils.models import"
ENCODER, QWEN, SST2, DOLLY = (HUB_NAMES[key] for key in ("encoder", "causal_lm", "classification", "instructions"))


@pytest.mark.parametrize(
    ("code", "names"),
    [
        (f"{DATA} load_classification\nload_classification(source)", {SST2}),
        (f"{DATA} load_classification as load\nload(source=source)", {SST2}),
        (f"{DATA} load_instructions\ndef f(place):\n    load_instructions(place)", {DOLLY}),
        (f"{DATA} load_language_modelling\nrows = load_language_modelling(source)['train']", {DOLLY}),
        (f"{MODELS} load_tokenizer, load_causal_lm\nload_tokenizer(source), load_causal_lm(source)", {ENCODER, QWEN}),
        (f"{MODELS} load_classifier\nload_classifier(3, source, num_hidden_layers=1)", {ENCODER}),
        ("from course_utils.models.local import load_masked_lm\nload_masked_lm('hub')", {ENCODER}),
        ("from course_utils import models\nmodels.load_causal_lm(source)", {QWEN}),
        ("import course_utils.models as m\nm.load_causal_lm(source)", {QWEN}),
        # Local whatever the lesson was told, or no loader of the course at all.
        (f"{MODELS} load_classifier\nload_classifier(3)", set()),
        (f"{MODELS} load_classifier\nload_classifier(3, 'local', **small)", set()),
        (f"{MODELS} load_classifier\nload_classifier(num_labels, vocab_size=9, **small)", set()),
        (f"{MODELS} load_causal_lm\nload_causal_lm(source='local')", set()),
        (f"{DATA} load_point_clouds\nload_point_clouds()", set()),
        (f"{DATA} load_classification", set()),
        ("from datasets import load_dataset\nload_dataset(source)", set()),
        ("data = load(source)\ndata.load_classification(source)", set()),
    ],
)
def test_what_a_lesson_fetches(code, names):
    assert fetched(code) == names


@pytest.mark.parametrize(
    "code",
    [
        f"{MODELS} load_diffusion\n\nload_diffusion()",
        "from course_utils.data.images import load_scans\n\nload_scans(source)",
        "from course_utils import models\n\nmodels.load_diffusion(source)",
    ],
)
def test_an_unknown_loader_is_one_sentence(code):
    with pytest.raises(ValueError, match=r"^line 3 calls course_utils\.\S+\.load_\w+, of which .*hub_use\.py$"):
        fetched(code)


def test_a_lesson_that_calls_one_is_not_executed(tmp_path, monkeypatch):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "05_planted.py").write_text(f"{MODELS} load_diffusion\n\nload_diffusion()\n")
    monkeypatch.setattr(test_short_runs, "papermill", lambda *_, **__: pytest.fail("executed"))
    with pytest.raises(pytest.fail.Exception, match=r"^05_planted was not executed: line 3 calls .*hub_use\.py$"):
        test_short_runs.test_few_steps(tmp_path / "05_planted.ipynb", {}, tmp_path, print, None)


def test_every_loader_with_a_source_is_known():
    offered = {name: getattr(place, name) for place in (data, models) for name in place.__all__}
    loaders = {name: loader for name, loader in offered.items() if name.startswith("load_")}
    with_source = {name for name, loader in loaders.items() if "source" in inspect.signature(loader).parameters}
    assert (with_source, loaders.keys() - with_source) == (FETCHES.keys(), LOCAL)
    assert tuple(place.__name__ for place in (data, models)) == PLACES


def test_the_first_lesson_to_use_a_loader_is_found():
    one = f"{DATA} load_classification\nload_classification(source)"
    two = f"{one}\n{MODELS} load_causal_lm\nload_causal_lm()"
    three = two.replace("load_causal_lm()", "load_causal_lm(source)")
    course = ["1 + 1", one, one, two, three, three, one]
    hub = [runs_from_the_hub(code, course[:number]) for number, code in enumerate(course)]
    assert hub == [False, True, False, False, True, False, False]
