"""From a spec to a plan, to launch files, to the proof that they say what was asked (lesson 15).

No torch, transformers, accelerate or deepspeed is imported before it is used.
"""

from course_utils.launch.check.rows import table
from course_utils.launch.files.write import render, write
from course_utils.launch.planner.plan import strategies
from course_utils.launch.spec import Spec, SpecError, read_spec

__all__ = ["Spec", "SpecError", "read_spec", "render", "strategies", "table", "write"]
