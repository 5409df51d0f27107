"""Scenes with questions: no digit in two splits, answers that are true, labels only where something is predicted."""

from __future__ import annotations

import pytest
import torch

from course_utils.data.digits import NUMBERS
from course_utils.data.visual_questions import (
    COLUMNS,
    GRID,
    IMAGE,
    NOISE,
    ROWS,
    SIZE,
    VqaCollator,
    best_patches,
    by_patch,
    scene_tokenizer,
    visual_questions,
)


@pytest.fixture(scope="module")
def data():
    return visual_questions(scenes=700)


def digit_images(rows):
    cells = rows.images.reshape(-1, GRID, SIZE, GRID, SIZE).permute(0, 1, 3, 2, 4).reshape(len(rows), GRID**2, -1)
    return {tuple(cell.tolist()) for cell in cells[rows.cells != NOISE]}


def test_no_digit_image_is_in_two_splits(data):
    train, validation, test = (digit_images(data[split]) for split in ("train", "validation", "test"))
    assert train and not train & validation and not train & test and not validation & test


def test_answers_are_true_and_relevant_cells_decide_them(data):
    rows = data["train"]
    for number in range(len(rows)):
        cells, relevant = rows.cells[number], rows.relevant[number]
        digits = cells[cells != NOISE]
        if rows.kinds[number] == "at":
            words = rows.questions[number].split()
            place = GRID * ROWS.index(words[4]) + COLUMNS.index(words[7])
            expected, where = cells[place], torch.arange(GRID**2) == place
        elif rows.kinds[number] == "count":
            expected, where = len(digits), cells != NOISE
        else:
            expected, where = digits.max(), cells == digits.max()
        assert rows.answers[number] == NUMBERS[int(expected)]
        assert torch.equal(relevant, where)
        assert 4 <= len(digits) <= 8


def test_filler_changes_answers_only(data):
    chatty = visual_questions(scenes=700, filler=3)
    assert chatty["test"].questions == data["test"].questions
    assert torch.equal(chatty["test"].images, data["test"].images)
    assert [a.split()[-1] for a in chatty["test"].answers] == data["test"].answers
    assert all(len(answer.split()) == 4 for answer in chatty["test"].answers)


@pytest.mark.parametrize("bad", [{"scenes": 0}, {"filler": -1}, {"scenes": True}])
def test_arguments_out_of_range(bad):
    with pytest.raises(ValueError, match="out of range"):
        visual_questions(**bad)


def test_only_the_answer_and_its_end_are_labels(data):
    tokenizer = scene_tokenizer()
    rows = [visual_questions(scenes=50, filler=2)["train"][number] for number in range(5)]
    batch = VqaCollator(tokenizer, filler_weight=0.1)(rows)
    for number, row in enumerate(rows):
        target = batch["labels"][number]
        words = tokenizer.convert_ids_to_tokens(target[target != -100])
        assert words == [*row["answer"].split(), "<end>"]
        weights = batch["relevance"][number]
        assert weights[target == -100].sum() == 0
        assert weights[target != -100].tolist() == pytest.approx([0.1, 0.1, 1, 1])
        ids = batch["input_ids"][number][batch["attention_mask"][number] == 1]
        assert tokenizer(row["question"])["input_ids"] == ids[16 : -len(words)].tolist()
    assert (batch["input_ids"] == tokenizer.convert_tokens_to_ids(IMAGE)).sum(1).tolist() == [16] * 5


def test_kept_patches_belong_to_the_row(data):
    scores = torch.rand(len(data["train"]), 16)
    batch = VqaCollator(scene_tokenizer(), 3, scores)([data["train"][number] for number in (7, 2)])
    for place, number in enumerate((7, 2)):
        assert batch["kept"][place].tolist() == sorted(scores[number].topk(3).indices.tolist())
    assert torch.equal(batch["kept_scores"], scores[[7, 2]].gather(1, batch["kept"]))


def test_a_budget_is_drawn_for_each_batch(data):
    collate = VqaCollator(scene_tokenizer(), (1, 4), torch.rand(len(data["train"]), 16))
    seen = {collate([data["train"][0]])["kept"].shape[1] for _ in range(20)}
    assert seen == {1, 4}


@pytest.mark.parametrize(("keep", "says"), [(0, "out of range"), (17, "out of range"), (4, "needs scores")])
def test_budgets_out_of_range(keep, says):
    with pytest.raises(ValueError, match=says):
        VqaCollator(scene_tokenizer(), keep)


def test_best_patches_and_sums_by_patch():
    kept, scores = best_patches(torch.tensor([[0.1, 0.4, 0.2, 0.3]]), 2)
    assert kept.tolist() == [[1, 3]] and scores[0].tolist() == pytest.approx([0.4, 0.3])
    image = torch.zeros(1, 1, 32, 32)
    image[0, 0, 8:16, 24:32] = 1
    assert by_patch(image)[0].nonzero().flatten().tolist() == [7]
