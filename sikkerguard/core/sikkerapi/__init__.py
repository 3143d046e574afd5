"""What is particular about SikkerAPI: its endpoint, and the bodies of its answers. Pure."""
