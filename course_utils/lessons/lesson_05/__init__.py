"""Lesson 05: callbacks."""
