"""Two optimizers in one Trainer: who owns what, which gradient arrives where, resume bit for bit."""

import pytest
import torch
from torch import nn

from course_utils.data.collators import StackingCollator
from course_utils.models.codec import Codec
from course_utils.training.settings import quiet_trainer
from course_utils.training.two_optimizers import AUX_FILE, TwoOptimizersTrainer, split_parameters

ROWS = [{"pixels": torch.rand(8, 8, generator=torch.Generator().manual_seed(i))} for i in range(64)]


def make(folder, trainer_class=TwoOptimizersTrainer, **settings):
    torch.manual_seed(0)
    defaults = {"max_steps": 8, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "use_cpu": True, "seed": 0}
    options = {"data_collator": StackingCollator(), "trainer_class": trainer_class}
    return quiet_trainer(Codec(width=8), folder, ROWS, **options, **(defaults | settings))


def owned(optimizer, model):
    names = {id(p): name for name, p in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def different(first, second):
    pairs = zip(first.state_dict().items(), second.state_dict().values(), strict=True)
    return [name for (name, a), b in pairs if not torch.equal(a, b)]


def test_each_parameter_has_one_owner(tmp_path):
    trainer = make(tmp_path)
    trainer.create_optimizer()
    main, auxiliary = owned(trainer.optimizer, trainer.model), owned(trainer.aux_optimizer, trainer.model)
    assert auxiliary == ["bottleneck.quantiles"]
    assert sorted(main + auxiliary) == sorted(name for name, _ in trainer.model.named_parameters())
    assert all(p.requires_grad for p in trainer.model.parameters())


def test_the_auxiliary_loss_reaches_only_the_quantiles_and_the_loss_never():
    model = Codec()
    model(torch.stack([row["pixels"] for row in ROWS])).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == ["bottleneck.quantiles"]
    model.zero_grad()
    model.aux_loss().backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["bottleneck.quantiles"]


def test_the_main_weights_are_those_of_a_run_whose_quantiles_stand_still(tmp_path):
    class Still(TwoOptimizersTrainer):
        auxiliary_lr = 0.0

    moving = make(tmp_path)
    moving.train()
    still = make(tmp_path, Still)  # seeds again: the same noise
    still.train()
    assert different(moving.model, still.model) == ["bottleneck.quantiles"]


def test_a_plain_trainer_never_moves_the_quantiles(tmp_path):
    from transformers import Trainer

    trainer = make(tmp_path, Trainer)
    before = trainer.model.bottleneck.quantiles.clone()
    trainer.train()
    assert torch.equal(trainer.model.bottleneck.quantiles, before)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_one_auxiliary_step_a_window(tmp_path, accumulation):
    trainer = make(tmp_path, max_steps=5, gradient_accumulation_steps=accumulation, per_device_train_batch_size=4)
    trainer.train()
    state = trainer.aux_optimizer.state_dict()["state"]
    assert int(state[0]["step"]) == trainer.state.global_step == 5


def test_the_auxiliary_gradient_is_gone_before_clipping(tmp_path):
    seen = []

    class Watching(TwoOptimizersTrainer):
        def training_step(self, *args, **options):
            loss = super().training_step(*args, **options)
            seen.append(self.model.bottleneck.quantiles.grad)
            return loss

    make(tmp_path, Watching, max_steps=2).train()
    assert seen == [None, None]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path, accumulation):
    settings = {"save_strategy": "steps", "save_steps": 4, "gradient_accumulation_steps": accumulation}
    whole = make(tmp_path, **settings)
    whole.train()
    assert (tmp_path / "checkpoint-4" / AUX_FILE).exists()
    resumed = make(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=f"{tmp_path}/checkpoint-4")
    assert different(whole.model, resumed.model) == []
    states = [t.aux_optimizer.state_dict()["state"][0] for t in (whole, resumed)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_without_the_auxiliary_file_only_the_quantiles_differ(tmp_path):
    class Forgets(TwoOptimizersTrainer):
        def _load_optimizer_and_scheduler(self, checkpoint):
            super(TwoOptimizersTrainer, self)._load_optimizer_and_scheduler(checkpoint)

    settings = {"save_strategy": "steps", "save_steps": 4}
    whole, forgetful = make(tmp_path, **settings), make(tmp_path, Forgets, **settings)
    whole.train()
    forgetful.train(resume_from_checkpoint=f"{tmp_path}/checkpoint-4")
    assert different(whole.model, forgetful.model) == ["bottleneck.quantiles"]


def test_split_parameters():
    model = nn.Module()
    model.a, model.b = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
    model.c = nn.Module()
    model.c.scale, model.scale_head = nn.Parameter(torch.zeros(1)), nn.Linear(1, 1)
    main, auxiliary = split_parameters(model, "scale")
    assert auxiliary == [model.c.scale]
    assert [id(p) for p in main] == [id(p) for p in (*model.a.parameters(), *model.scale_head.parameters())]
    with pytest.raises(ValueError, match="ending='nothing' fits no trainable parameter; allowed: bias, scale, weight"):
        split_parameters(model, "nothing")
