"""From raw text and images to padded batches. Loaders are imported when first used: importing this costs nothing."""

from importlib import import_module

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


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
