"""A model behind HTTP: the numbers that methods need of a teacher, and its text."""
