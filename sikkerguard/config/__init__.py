"""Settings: the table of variables, and how they are read."""
