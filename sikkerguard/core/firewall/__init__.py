"""The packet filter as values: what is to be in the kernel, what is there, and what an address meets.

Shared by every backend: `Inspection` and `DesiredFamily` in `state`, `Operation` in `diff`, and of `names` the prefix
of the log lines. Everything else describes ipset sets and iptables rules. It is here and not in a backend's folder
since it is pure: tests walk packets through the rules, and the dry run prints them, without a kernel; and a second
backend with ipset sets would write the very same rules through another library.
"""
