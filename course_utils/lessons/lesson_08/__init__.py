"""Lesson 08: Accelerate."""
