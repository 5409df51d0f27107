"""What torch's AdamW takes, the three own versions do as well or refuse: settings, gradients, saved states."""

import pytest
import torch

from course_utils.training.optim import AdamW, ForeachAdamW
from tests.training.test_optim import VERSIONS

REFUSED = {  # what torch's AdamW takes and these three do not do, or would do wrong
    "lr": [-0.1, float("nan"), torch.tensor(0.1), "0.1", True],
    "betas": [(0.9,), (0.9, 0.99, 0.999), 0.9, (0.9, 1.0), (torch.tensor(0.9), torch.tensor(0.99)), ("a", "b")],
    "eps": [-1e-8, None],
    "weight_decay": [-0.1, float("inf")],
    "amsgrad": [True],
    "maximize": [True],
    "differentiable": [True],
    "decoupled_weight_decay": [False],
}


@pytest.mark.parametrize("cls", VERSIONS)
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_a_groups_settings_are_checked_wherever_they_come_from(cls, name, value):
    """In a group, in a group that is added, in a state that torch's AdamW saved."""
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = cls([first])
    theirs = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict()
    theirs["param_groups"][0][name] = value
    for attempt in (
        lambda: cls([{"params": [first], name: value}]),
        lambda: optimizer.add_param_group({"params": [second], name: value}),
        lambda: optimizer.load_state_dict(theirs),
    ):
        with pytest.raises(ValueError, match=rf"{name}=.*; allowed: "):
            attempt()
    assert len(optimizer.param_groups) == 1 and optimizer.param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize("cls", VERSIONS)
def test_parameters_and_gradients_of_another_kind_are_refused(cls):
    with pytest.raises(ValueError, match="complex64; allowed: real"):
        cls([torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))])
    table = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = cls(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse gradient.*; allowed: "):
        optimizer.step()


@pytest.mark.parametrize("cls", VERSIONS)
def test_a_state_that_lacks_a_moment_or_a_setting_is_refused(cls):
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = cls([p])
    sgd = torch.optim.SGD([p], momentum=0.9)
    sgd.step()
    with pytest.raises(ValueError, match="betas is missing"):
        optimizer.load_state_dict(sgd.state_dict())
    adam = torch.optim.AdamW([p])
    adam.step()
    state = adam.state_dict()
    state["state"][0].pop("exp_avg")
    with pytest.raises(ValueError, match="state of parameter 0 lacks exp_avg"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize("cls", [AdamW, ForeachAdamW])
def test_a_step_saved_as_a_plain_number_goes_on(cls):
    """As torch < 1.12 saved it, and as torch's own AdamW still reads it."""
    results = []
    for optimizer_class in (cls, torch.optim.AdamW):
        p = torch.nn.Parameter(torch.ones(2))
        p.grad = torch.ones(2)
        optimizer = optimizer_class([p])
        optimizer.step()
        state = optimizer.state_dict()
        state["state"][0]["step"] = 7
        optimizer.load_state_dict(state)
        optimizer.step()
        results.append(p.detach())
    assert torch.allclose(*results, rtol=0, atol=1e-7)
