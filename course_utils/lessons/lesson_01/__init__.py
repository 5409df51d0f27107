"""Lesson 01: the training loop."""
