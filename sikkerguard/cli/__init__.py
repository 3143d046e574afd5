"""The command line: the commands, a file each (`run` has `restore` as well, `parser` has `version` and `help`), and the
wiring of the service."""
