"""Lesson 03: Trainer."""
