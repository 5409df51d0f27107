"""From raw text and images to padded batches. Loaders are imported when first used: importing this costs nothing."""

from course_utils.lazy import attributes

_WHERE = {
    "cache_folder": "cache",
    "load_classification": "text",
    "load_instructions": "text",
    "load_language_modelling": "text",
    "own_sentences": "text",
    "load_digit_scenes": "digits",
    "load_point_clouds": "digits",
}
__all__ = list(_WHERE)
__getattr__ = attributes(__name__, _WHERE)
