"""Lesson 06: custom losses."""
