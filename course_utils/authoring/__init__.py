"""What authors run: build the notebooks and decks, execute the course, set up, check the environment."""
