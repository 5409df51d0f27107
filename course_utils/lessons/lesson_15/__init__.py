"""Lesson 15: launch."""
