"""Reports: which rows are made of what was blocked, and what becomes of them. Pure."""
