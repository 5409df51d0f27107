"""From a spec to a plan, to launch files, to the proof that they say what was asked (lesson 15).

No torch, transformers, accelerate or deepspeed is imported before it is used.
"""

from course_utils.lazy import attributes

_WHERE = {
    "Spec": "spec",
    "SpecError": "errors",
    "read_spec": "spec_file",
    "strategies": "plan",
    "render": "files",
    "write": "files",
    "table": "check",
}
__all__ = list(_WHERE)
__getattr__ = attributes(__name__, _WHERE)
