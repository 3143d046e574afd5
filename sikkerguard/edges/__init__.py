"""The edges: each is the only importer of one library or one part of the operating system."""
