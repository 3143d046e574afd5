"""The host: its addresses, ways out, resolvers, sessions and connections, and the self-test."""
