"""The host tier: Debian, booted with systemd as its first process, and SikkerGuard as one of its services."""
