"""Reading the libraries' docstrings, in two processes."""

from course_utils.data.docstrings import read_libraries, source_files


def test_two_processes_read_every_file_in_its_order_and_say_nothing(capfd):
    """What the second one writes to stderr would stand below a learner's first cell."""
    found = list(dict.fromkeys(docstring.file for docstring in read_libraries(["accelerate"])))
    root, paths = source_files("accelerate")
    order = [f"accelerate/{path.relative_to(root).as_posix()}" for path in paths]
    assert len(found) > 40 and found == [file for file in order if file in found]
    assert capfd.readouterr().err == ""
