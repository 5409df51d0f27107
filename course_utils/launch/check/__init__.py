"""Do launch files say what their spec asks for? Each is read by the tool it is for."""
