"""systemd: notifications to it, and what it has in mind for our unit."""
