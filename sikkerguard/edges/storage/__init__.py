"""The state directory: the files in it, and the database of counts and reports."""
