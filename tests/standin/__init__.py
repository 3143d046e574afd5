"""A stand-in for SikkerAPI that a test can have go wrong in every way in which a server, or the line to it, may.

`server.Standin` is the whole; `entries` is what it serves, `tiers` to whom, `faults` are the ways to go wrong, `record`
is what it was asked and got. It shares no code with the server of `sikkerguard demo`.
"""
