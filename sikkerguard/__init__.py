"""SikkerGuard keeps a Linux server's doors shut to known attackers."""
