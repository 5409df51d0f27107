"""From raw text and images to padded batches. Importing this costs nothing: loaders import what they need."""

from course_utils.data.cache import cache_folder
from course_utils.data.own_text import own_sentences
from course_utils.data.text import (
    load_classification,
    load_fresh_test,
    load_instructions,
    load_language_modelling,
)
from course_utils.lazy import attributes

_LATER = {"load_digit_scenes": "digits", "load_point_clouds": "digits"}  # numpy: 0.1 s
__getattr__ = attributes(__name__, _LATER)
__all__ = [
    "cache_folder",
    "load_classification",
    "load_digit_scenes",
    "load_fresh_test",
    "load_instructions",
    "load_language_modelling",
    "load_point_clouds",
    "own_sentences",
]
