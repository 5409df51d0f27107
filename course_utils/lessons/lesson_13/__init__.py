"""Lesson 13: DeepSpeed."""
