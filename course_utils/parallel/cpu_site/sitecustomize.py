"""Rehearsal on the CPU: with this folder first on PYTHONPATH, an unchanged program shards on CPU processes.

Python imports ``sitecustomize`` at every start. This one puts a finder in place that repairs a few modules of
accelerate, torch, DeepSpeed and transformers, should the program import them: ``../cpu_repairs.py`` says which, and
why. An ordinary start imports nothing but the standard library, and takes 3 ms longer.

What is rehearsed is the wiring: which wrapper, which shards, which batches, the same losses. Not speed, not memory.
"""

import importlib.machinery
import importlib.util
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def load_repairs():
    """The module ``cpu_repairs`` of the folder above, by its place and not by its name.

    A program that is not the course's need not have ``course_utils`` on its path; and importing its package
    ``course_utils.parallel`` first would cost every start 30 ms.
    """
    file = os.path.join(os.path.dirname(HERE), "cpu_repairs.py")
    spec = importlib.util.spec_from_file_location("cpu_repairs_at_start", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_next_sitecustomize():
    """Python imports the first ``sitecustomize`` on its path only, and that is this one: import the next as well.

    The next, and never one before: two copies of this folder (two checkouts) would call each other without end.
    """
    folders = [os.path.abspath(folder or ".") for folder in sys.path]
    after = folders[folders.index(HERE) + 1 :] if HERE in folders else folders
    others = [folder for folder in after if folder != HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would take a GPU where there is one
sys.meta_path.insert(0, load_repairs().RepairAfterImport)
run_next_sitecustomize()
