"""Lesson 02: batches."""
