"""From a spec to a plan, to launch files, to the proof that they say what was asked (lesson 15)."""
