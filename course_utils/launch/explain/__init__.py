"""What do these files really do? Anybody's launch files, read without executing them and without a spec."""
