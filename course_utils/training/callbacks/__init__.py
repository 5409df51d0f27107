"""Callbacks of the course: watch or steer a Trainer without subclassing it (lesson 05). Importing this costs nothing.

One callback per file. Those with a memory are ``ExportableState``: a run resumed with
``restore_callback_states_from_checkpoint=True`` goes on with it. Add one object of a class to a Trainer, not two: of
two the wrong states come back (a bug of transformers 5.23, shown in lesson 05).
"""

from course_utils.lazy import attributes

_WHERE = {
    "EventRecorder": "events",
    "GenerationSamples": "samples",
    "GradientWatch": "gradients",
    "LearningRateLogger": "learning_rate",
    "LivePlot": "live_plot",
    "PlateauStop": "plateau",
    "PredictionImages": "prediction_images",
    "SaveBest": "save_best",
    "StopTogether": "stop_together",
    "Throughput": "throughput",
}
__getattr__ = attributes(__name__, _WHERE)
__all__ = sorted(_WHERE)
