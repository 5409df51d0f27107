"""Lesson 09: speed and memory."""
