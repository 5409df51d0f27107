"""Lesson 11: data parallel."""
