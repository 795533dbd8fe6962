"""How a settings file is read, checked and written."""
