"""The kernel's packet filter. Each backend is a folder, or a module like the dry run; `select` opens one of them."""
