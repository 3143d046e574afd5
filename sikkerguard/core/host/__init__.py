"""What is read of this host, from the bytes that the kernel and logind give: routes, sockets, flows, SSH sessions."""
