"""One folder a lesson: its figures, its exercises with their checkers, and the solutions. They change together."""
