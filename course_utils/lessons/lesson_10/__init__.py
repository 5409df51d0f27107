"""Lesson 10: figures, exercises, solutions."""
