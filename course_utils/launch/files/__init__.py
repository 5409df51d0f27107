"""The launch files of a spec: rendered from templates, each line with its reason."""
