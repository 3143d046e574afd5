"""Where the service can be asked: the page on a local port, and the control socket of the commands."""
