"""The kernel's own log lines, from the journal or from /dev/kmsg."""
