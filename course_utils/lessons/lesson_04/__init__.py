"""Lesson 04: evaluation."""
