"""The VM tier: Debian on its own kernel, in a virtual machine, and the package from its installation to its purge."""
