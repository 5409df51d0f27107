"""Lesson 12, ZeRO and FSDP: its figures, what its ranks do, exercises and solutions."""
