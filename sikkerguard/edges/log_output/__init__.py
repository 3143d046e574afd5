"""Where our own log goes: formats, levels, and a queue that no slow reader holds up."""
