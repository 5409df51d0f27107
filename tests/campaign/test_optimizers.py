"""Drawn configurations of the own AdamWs beside torch's. A sample here, 200 of each every night."""

import pytest
import torch

from course_utils.training.optim import AdamW
from tests.campaign import optimizers
from tests.campaign.tally import Tally


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("only", "count"), [("AdamW", 40), ("ForeachAdamW", 40), ("CompiledAdamW", 3)])
def test_configurations_a_sample(only, count):
    if only not in [cls.__name__ for cls in optimizers.CLASSES]:
        pytest.skip("no C++ compiler: torch.compile cannot run")
    tally = optimizers.campaign(count, 7, only)
    tally.check()
    assert sum(tally.tried.values()) == count


@pytest.mark.long
@pytest.mark.parametrize("cls", optimizers.CLASSES)
def test_configurations(cls):
    optimizers.campaign(200, 200, cls.__name__).check()


def test_a_wrong_update_is_noticed(monkeypatch):
    """The campaign's own alarm: decay of the weights left out."""
    step = AdamW._update

    def without_decay(self, group, params):
        step(self, group | {"weight_decay": 0.0}, params)

    monkeypatch.setattr(AdamW, "_update", without_decay)
    tally: Tally = optimizers.campaign(40, 7, "AdamW")
    assert tally.faults and all("off" in fault for fault in tally.faults)
