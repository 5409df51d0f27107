"""Saved and live bytes, counted on cases that can be added up by hand."""

import torch
from torch import nn

from course_utils.models import load_causal_lm
from course_utils.training.saved_tensors import LiveTensors, SavedTensors, peak_bytes, saved_bytes


def test_what_a_product_and_an_activation_keep():
    x = torch.randn(10, 8)
    layer = nn.Linear(8, 4)
    # Linear keeps its input (here x, left out) and its weight (left out); sigmoid keeps its output.
    assert saved_bytes(layer, lambda: layer(x).sigmoid().sum(), [x]) == 10 * 4 * 4
    assert saved_bytes(layer, lambda: layer(x).sigmoid().sum()) == 10 * 4 * 4 + 10 * 8 * 4
    x.requires_grad_()  # now the weight is needed for its gradient
    assert saved_bytes(layer, lambda: layer(x).sigmoid().sum(), [x]) == 10 * 4 * 4
    assert saved_bytes(None, lambda: layer(x).sigmoid().sum(), [x]) == 10 * 4 * 4 + 4 * 8 * 4


def test_views_of_one_storage_count_once():
    x = torch.randn(6, requires_grad=True)

    def loss():
        y = x.exp()  # kept by exp
        return (y.view(2, 3) * y.view(2, 3)).sum()  # kept again, twice, as views

    assert saved_bytes(None, loss, [x]) == 6 * 4


def test_backward_still_works_and_shapes_are_told():
    x = torch.randn(5, 3, requires_grad=True)
    with SavedTensors(inputs=[x]) as saved:
        loss = x.tanh().sum()
    loss.backward()
    assert torch.allclose(x.grad, 1 - x.detach().tanh() ** 2)
    assert saved.by_shape == {((5, 3), torch.float32): 60}


def test_the_peak_of_a_chain_that_is_freed():
    def chain():
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b + 1
        del b
        return c.sum()

    assert 8000 <= peak_bytes(chain) <= 8100  # two of the three at once


def test_what_existed_before_and_views_count_nothing():
    x = torch.zeros(1000)
    assert peak_bytes(lambda: x.view(10, 100).t()) == 0
    assert peak_bytes(lambda: x.add_(1)) == 0


def test_peak_is_near_torchs_own_tracker():
    from torch.distributed._tools.mem_tracker import MemTracker

    torch.manual_seed(0)
    model = load_causal_lm(vocab_size=500, num_hidden_layers=2)
    ids = torch.randint(5, 500, (4, 32))
    for _ in range(2):  # gradients exist
        model(input_ids=ids, labels=ids).loss.backward()
        model.zero_grad()
    with LiveTensors() as live:
        model(input_ids=ids, labels=ids).loss.backward()
    model.zero_grad()
    tracker = MemTracker()
    tracker.track_external(model)
    with tracker:
        model(input_ids=ids, labels=ids).loss.backward()
    (found,) = tracker.get_tracker_snapshot("peak").values()
    by_name = {str(getattr(kind, "value", kind)): size for kind, size in found.items()}
    theirs = by_name["Total"] - by_name["Parameter"] - by_name["Buffer"]
    assert abs(live.peak / theirs - 1) < 0.05
