"""Dropped packets: attributed to their sources, summed up, and put into lines of the log. Pure: no I/O."""
