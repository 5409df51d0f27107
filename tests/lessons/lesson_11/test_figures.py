"""Figures of lesson 11: every one has its words; what they draw is what was counted."""

from course_utils.lessons.lesson_11 import figures
from course_utils.parallel import reference
from course_utils.parallel.data_parallel import buckets_of


def test_every_figure_has_its_words():
    model = reference.new_model()
    part = {"gradient": [[0.1, -0.2], [0.3, 0.0]], "targets": 3}
    timeline = {"backward": [0.0, 5.0], "exchanges": [[0, 1.0, 2.0], [1, 2.0, 6.0]]}
    trace = {"backward": [[0.0, 4.0]], "gradients": [1.0, 3.0], "calls": [2.0], "exchanges": [[7, 2.1, 5.0]]}
    result = {"from_alone": 1e-6, "from_micro_batches": 0.0}
    made = [
        figures.collectives(),
        figures.ring(figures.ring_history(4)),
        figures.who_is_who(),
        figures.buckets(model, buckets_of(list(model.parameters()), 2**17)),
        figures.dealt({"one": [[0, 1], [2, 0]], "two": [[0], [1]]}),
        figures.gradients([part, part], part["gradient"], part["gradient"]),
        figures.two_runs([2.0, 1.0], [2.0, 1.0]),
        figures.bytes_sent({"naive": {2: 16, 4: 48}, "ring": {2: 16, 4: 24}}, 16),
        figures.timelines({"naive": timeline, "bucketed": timeline}),
        figures.traces({"naive": trace, "nothing exchanged": trace | {"calls": [], "exchanges": []}}),
        figures.equality({"DDP": result}),
        figures.seeds({"own": [0.1, 0.1], "equal": [0.0, 0.0]}, [0.1, 0.2, 0.15]),
        figures.all_reduce_times([1, 10], {"torch": [1.0, 2.0], "ring by hand": [2.0, 3.0]}),
    ]
    assert all(len(figure.alternative_text) > 60 for figure in made)
