"""What a run should be, validated, and what that means in the words of each tool."""

from course_utils.errors import SpecError
from course_utils.launch.spec.read import read_spec
from course_utils.launch.spec.spec import Spec

__all__ = ["Spec", "SpecError", "read_spec"]
