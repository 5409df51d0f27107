"""Wrong answers to lesson 09."""
