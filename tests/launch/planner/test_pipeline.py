"""Pipelines: stages, memory, seconds by hand; the schedule against a simulation of 1F1B; layouts of 4,096 GPUs."""

import pytest

from course_utils.errors import SpecError
from course_utils.launch.__main__ import main
from course_utils.launch.planner import goodput, memory, pipeline, speed
from course_utils.launch.planner.layouts import layouts
from course_utils.launch.planner.plan import plan
from course_utils.launch.planner.report import plan_table
from course_utils.launch.spec import Spec
from course_utils.lessons.lesson_15.pipeline_figure import pipeline_chart
from course_utils.models.shapes import builtin, layer_parameters, parameter_count

LLAMA = builtin()["meta-llama/Llama-3.1-8B"]
LAYER, VOCABULARY = 218_112_000, 128_256 * 4096  # parameters
# Four stages of one machine with 8 H100s: 8 pipelines of 16 micro-batches.
ONE_STAGE = Spec(model="meta-llama/Llama-3.1-8B", global_batch=128, price=2.0, max_steps=900)


@pytest.mark.parametrize(
    ("layers", "stages", "found"),
    [
        (126, 16, [7, *[8] * 14, 7]),  # Llama 3 405B
        (32, 4, [8, 8, 8, 8]),
        (33, 4, [8, 9, 8, 8]),
        (35, 4, [9, 9, 9, 8]),
        (7, 2, [4, 3]),
        (3, 3, [1, 1, 1]),
    ],
)
def test_layers_are_divided(layers, stages, found):
    assert pipeline.divide(layers, stages) == found


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-8B", "Qwen/Qwen3-0.6B", "openai-community/gpt2"])
@pytest.mark.parametrize("stages", [2, 5])
def test_the_stages_hold_the_model(name, stages):
    """Every parameter once; an embedding that is the output matrix too is held by the first stage and the last."""
    shape = builtin()[name]
    twice = shape.vocab_size * shape.hidden_size if shape.tie_word_embeddings else 0
    found = [parameter_count(one) for one in pipeline.shapes_of(shape, stages)]
    assert sum(found) == parameter_count(shape) + twice
    assert found[0] == layer_parameters(shape) * pipeline.divide(shape.num_hidden_layers, stages)[0] + (
        shape.vocab_size * shape.hidden_size
    )


def test_memory_of_the_first_stage_by_hand():
    """Eight layers and the embedding, gathered whole; four micro-batches in flight leave 200,832 bytes a token each.

    A layer keeps two norms (2 x 6 h), their outputs (2 x 2 h), queries, keys, values and attention's output
    (2 (2 x 4,096 + 2 x 1,024)), a number per head (4 x 32), and four wide tensors (4 x 2 x 14,336).
    """
    one = plan(ONE_STAGE, stages=4)
    count, tokens = 8 * LAYER + VOCABULARY, 2048
    layer = 12 * 4096 + 4 * 4096 + 2 * (2 * 4096 + 2 * 1024) + 4 * 32 + 8 * 14_336
    assert one.pipeline.tightest == 0 and one.pipeline.stages[0].in_flight == 4 and layer == 200_832
    at_loss, last, first = (one.moments[moment] for moment in ("loss", "last layer", "first layer"))
    assert at_loss["activations"] == 4 * 8 * tokens * layer and at_loss["logits"] == 0
    assert at_loss["whole gradients"] == at_loss["gathered units"] == 2 * count
    assert (at_loss["weights"], at_loss["optimizer"]) == (4 * count // 8, 8 * count // 8)
    # The oldest micro-batch goes backward, a layer at a time, while three others wait with all their layers.
    working = tokens * (layer + 2 * 2 * 14_336 + 2 * 4096)
    assert last["activations"] == (4 * 8 - 1) * tokens * layer + working
    assert first["activations"] == 3 * 8 * tokens * layer + working
    assert last["gathered units"] == first["gathered units"] == 2 * count + 2 * LAYER, "and a unit's new gradient"
    for found in one.moments.values():
        rest = sum(size for name, size in found.items() if name != "margin")
        assert found["margin"] == int(memory.CONTEXT + memory.FRAGMENTATION * rest)


def test_the_last_stage_has_one_in_flight_and_the_logits():
    """With a short pipeline and long sequences in a large vocabulary it is the tightest."""
    shape = LLAMA.model_copy(update={"num_hidden_layers": 4, "vocab_size": 1_000_000})
    one = plan(ONE_STAGE.but(model=shape), stages=2)
    assert one.pipeline.tightest == 1 and one.pipeline.stages[1].in_flight == 1
    assert one.moments["loss"]["logits"] == 12 * 2048 * 1_000_000


def test_seconds_of_a_step_by_hand(monkeypatch):
    """At 395.6 TFLOP/s (MFU 0.4) a micro-batch of 2,048 tokens takes 56.3 ms on eight layers, and the head 16.3 ms.

    Four stages once and the last 15 times more: 0.2414 + 15 x 0.0726 s. 2,048 x 4,096 x 2 bytes pass at 50 GB/s, an
    eighth of a machine's network, 2 (16 + 4 - 2) times. The first stage reduces 2 bytes a parameter at 450 GB/s.
    """
    monkeypatch.setattr(speed, "LATENCY", 0.0)
    monkeypatch.setattr(speed, "NETWORK_LATENCY", 0.0)
    found = plan(ONE_STAGE, stages=4).speed
    eight, head = 0.056282, 0.016318
    assert found.compute == pytest.approx(16 * (eight + head), rel=1e-4)
    assert found.bubble == pytest.approx(3 * eight, rel=1e-4)
    passing, reducing = 2 * 18 * 16_777_216 / 50e9, 7 / 8 * 2 * (8 * LAYER + VOCABULARY) / 450e9
    assert found.exposed == pytest.approx(passing + reducing, rel=1e-4)  # gathering hides behind a forward pass
    assert found.step == found.compute + found.exposed + found.bubble
    assert found.volume == 7 * 2 * (8 * LAYER + VOCABULARY) // 8 * 2 + 16 * 16_777_216
    assert found.cost == pytest.approx(900 * found.step / 3600 * 32 * 2.0), "all four machines are paid"
    assert found.tokens_per_second == pytest.approx(128 * 2048 / found.step)


def test_weights_that_arrive_late_and_a_matrix_held_twice(monkeypatch):
    """Over two slow machines gathering is longer than a forward pass, on each stage; tied gradients are added up."""
    monkeypatch.setattr(speed, "LATENCY", 0.0)
    monkeypatch.setattr(speed, "NETWORK_LATENCY", 0.0)
    slow = ONE_STAGE.but(nodes=2, network=8.0)
    count = [8 * LAYER + VOCABULARY, 8 * LAYER, 8 * LAYER, 8 * LAYER + VOCABULARY + 4096]
    late = sum(15 / 16 * 2 * size / 8e9 for size in count) - (4 * 0.056282 + 0.016318) / 3
    passing, reducing = 2 * (8 + 4 - 2) * 16_777_216 / 1e9, 15 / 16 * 2 * count[0] / 8e9
    found = plan(slow, stages=4).speed
    assert found.exposed == pytest.approx(late + passing + reducing, rel=1e-4)
    tied = LLAMA.model_copy(update={"tie_word_embeddings": True})
    more = plan(slow.but(model=tied), stages=4).speed.exposed - found.exposed
    assert more == pytest.approx(2 * 1 / 2 * (VOCABULARY / 16 * 4) / 1e9, rel=1e-3)


def simulate(*given):
    """Seconds of a step, event by event."""
    return max(end for _, end in pipeline.schedule(*given).values())


def test_the_schedule_by_hand():
    """Two stages, three micro-batches, a second forward and two backward."""
    found = pipeline.schedule([(1.0, 2.0)] * 2, 3)
    starts = {place: sorted((start, kind[0], one) for (kind, one, at), (start, _) in found.items() if at == place)
              for place in (0, 1)}  # fmt: skip
    assert starts[0] == [(0, "f", 0), (1, "f", 1), (4, "b", 0), (6, "f", 2), (7, "b", 1), (10, "b", 2)]
    assert starts[1] == [(1, "f", 0), (2, "b", 0), (4, "f", 1), (5, "b", 1), (7, "f", 2), (8, "b", 2)]


@pytest.mark.parametrize(("stages", "number"), [(2, 2), (2, 9), (4, 4), (4, 16), (8, 24)])
@pytest.mark.parametrize("uneven", ["alike", "middle", "last"])
def test_the_schedule_is_what_a_simulation_finds(stages, number, uneven):
    """All stages once, the slowest for each further micro-batch; alike, idle for (p-1)/(m+p-1) of the time.

    Eight layers in the middle and seven at both ends, as in ``divide``, leave some time to catch up: 2 % too long.
    """
    seconds = [(1.0, 2.0)] * stages
    if uneven != "alike":
        seconds[1:-1] = [(8 / 7, 16 / 7)] * (stages - 2)
    if uneven == "last":
        seconds[-1] = (1.3, 2.6)  # it has the output layer
    rows = tuple(pipeline.Stage(1, stages - place, sum(two), 0.0, 0.0) for place, two in enumerate(seconds))
    found = pipeline.Pipeline(rows, 0, number, 0)
    slowest = max(map(sum, seconds))
    whole, planned = simulate(seconds, number, 0.0), sum(map(sum, seconds)) + (number - 1) * slowest
    assert 0.98 * planned < whole <= planned * (1 + 1e-12)
    assert found.bubble == pytest.approx(1 - number * slowest / planned)
    if uneven != "middle":
        assert whole == pytest.approx(planned)
    if uneven == "alike":
        assert found.bubble == pytest.approx((stages - 1) / (number + stages - 1))
    passing = simulate(seconds, number, 0.02)  # the receiver may compute something else meanwhile: never longer
    assert whole < passing <= whole + 2 * (number + stages - 2) * 0.02


@pytest.mark.parametrize(
    ("changes", "stages", "says"),
    [
        ({}, 0, "stages=0 is out of range; allowed: a number from 1 to num_hidden_layers=32"),
        ({"global_batch": 1024}, 33, "stages=33 is out of range"),
        ({}, 17, "stages=17 needs at least as many micro-batches in a step, and the batch leaves 16; allowed: at most"),
        ({"strategy": "zero3"}, 2, "stages=2 is planned with strategy='fsdp2' and offload='none' only"),
        ({"offload": "all"}, 2, "stages=2 is planned with strategy='fsdp2' and offload='none' only"),
    ],
)
def test_pipelines_that_do_not_exist(changes, stages, says):
    with pytest.raises(SpecError) as caught:
        plan(ONE_STAGE.but(**changes), stages=stages)
    assert says in str(caught.value)


def test_a_pipeline_on_the_command_line(capsys, tmp_path, monkeypatch):
    """``--nodes`` counts all machines; the text says what a stage is; nothing can be written."""
    monkeypatch.chdir(tmp_path)
    words = ["--model", "meta-llama/Llama-3.1-8B", "--nodes", "4", "--global_batch", "128"]
    assert main(["plan", *words, "--stages", "4"]) == 0
    text = capsys.readouterr().out
    assert plan_table(plan(ONE_STAGE.but(price=None, max_steps=1000), stages=4)) in text
    assert "FSDP2 + 4 stages on 4 x 8 H100-80GB; 128 sequences" in text and "of 16 micro-batches in flight" in text
    assert "4 stages of 8 layers on 1 x 8 GPUs each" in text and "failures: one in 65.1 days on 32 GPUs" in text
    assert main(["plan", *words, "--stages", "4", "--gpu_memory", "20"]) == 1
    assert "does not fit" in capsys.readouterr().out
    for command, stages, says in (
        ("write", "4", "stages=4 is planned, but no launch file runs a pipeline; allowed with `write`: 1"),
        ("plan", "3", "stages=3 is out of range; allowed: a divisor of nodes=4"),
        ("plan", "two", "stages='two' is out of range; allowed: a whole number >= 1"),
    ):
        assert main([command, *words, "--stages", stages]) == 2
        assert capsys.readouterr().err.startswith(f"error: {says}")
    assert main(["plan", *words, "--stages", "4", "--strategies"]) == 2
    assert capsys.readouterr().err == "error: stages=4 cannot be compared with --strategies; allowed: 1, or --layouts\n"
    assert list(tmp_path.iterdir()) == []


def test_failures_and_copies_count_all_stages():
    alone, four = plan(ONE_STAGE), plan(ONE_STAGE, stages=4)
    assert (alone.gpus, four.gpus) == (8, 32)
    assert goodput.failures_of(four).mtbf == goodput.failures_of(alone).mtbf / 4
    copied = [goodput.ways_to_save(one)[1].stall for one in (alone, four)]
    assert copied[0] == pytest.approx(4 * copied[1])


def test_3d_layouts_of_4096_gpus(monkeypatch):
    """2^a stages of at most 80 layers, 2^b GPUs a matrix, and 12 - a - b numbers of copies that leave two shards.

    Hundreds of plans in a fraction of a second: of a pipeline's stages at most three are looked at.
    """
    calls, usual = [], memory.on_gpu
    monkeypatch.setattr(memory, "on_gpu", lambda *given: calls.append(given) or usual(*given))
    found = layouts(Spec(model="meta-llama/Llama-3.1-70B", nodes=512, global_batch=4096, sequence_length=4096))
    ways = [(one.stages, one.spec.tensor_parallel, one.spec.replicas) for one in found]
    assert len(set(ways)) == len(found) == sum(12 - a - b for a in range(7) for b in range(4)) == 210
    looked_at = {1: 1, 2: 2}
    assert len(calls) == sum(looked_at.get(stages, 3) for stages, *_ in ways)
    assert {one.gpus for one in found} == {4096} and {one.spec.effective_batch for one in found} == {4096}
    fitting = [one for one in found if one.fits]
    assert fitting == found[: len(fitting)] and 1 < fitting[0].stages < 64
    assert fitting[0].speed.step == min(one.speed.step for one in fitting)
    assert fitting[0].name.endswith(" stages") and " GPUs a matrix + " in fitting[0].name


def test_layouts_keep_the_batch_and_are_named():
    """Without a ``global_batch`` too; what cannot divide the batch or the machines is left out."""
    found = {(one.stages, one.spec.tensor_parallel, one.spec.replicas): one for one in layouts(Spec(nodes=6))}
    assert {one.spec.effective_batch for one in found.values()} == {48}
    assert {stages for stages, *_ in found} == {1, 2, 3, 6} and {tensor for _, tensor, _ in found} == {1, 2, 4, 8}
    assert found[1, 8, 3].name == "FSDP2 + 3 replicas + 8 GPUs a matrix"
    assert found[3, 2, 2].name == "FSDP2 + 2 replicas + 2 GPUs a matrix + 3 stages"
    assert {one.spec.reshard_after_forward for one in found.values() if one.stages == 1} == {True}
    odd = layouts(Spec(nodes=3, gpus_per_node=4, global_batch=12, micro_batch=1))
    # Four GPUs a matrix would leave a stage nothing to shard.
    assert {(one.stages, one.pipeline.micro_batches) for one in odd if one.pipeline} == {(3, 3), (3, 6)}
    (alone,) = layouts(Spec(gpus_per_node=1))
    assert (alone.stages, alone.spec.replicas) == (1, 1)
    four = layouts(ONE_STAGE, stages=4)
    assert {one.gpus for one in four} == {32} and plan(ONE_STAGE, stages=4).total in {one.total for one in four}


def test_the_chart():
    """A lane per stage, a forward and a backward pass of every micro-batch in it; nothing overlaps."""
    figure = pipeline_chart(plan(ONE_STAGE.but(global_batch=64), stages=4))
    (axis,) = figure.axes
    bars = sorted((round(bar.get_y()), bar.get_x(), bar.get_x() + bar.get_width()) for bar in axis.patches)
    assert len(bars) == 4 * 8 * 2 == len(axis.texts) and len(axis.get_yticklabels()) == 4
    assert all(a[0] != b[0] or a[2] <= b[1] + 1e-9 for a, b in zip(bars, bars[1:], strict=False))
    assert "4 stages" in axis.get_title(loc="left") and len(figure.alternative_text) > 100
