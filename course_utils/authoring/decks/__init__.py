"""Decks: executed notebooks become self-contained HTML pages."""
