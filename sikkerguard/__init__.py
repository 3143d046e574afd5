"""SikkerGuard blocks known attackers on a Linux server, and never locks its owner out."""
