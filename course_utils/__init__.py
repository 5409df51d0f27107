"""Helper package of the course. Importing it costs nothing: torch and transformers are imported where they are used.

Folders follow a run's way: data -> models -> training -> parallel -> launch -> recipes; ``teach`` serves the notebooks.
"""

__version__ = "0.1.0"
