"""A stand-in for SikkerAPI, for the demo and the tests; faithful to its contract, faults included.

`server.Standin` is the service itself; `entries`, `lists` and `tiers` say what it serves and to whom;
`faults` are the ways to go wrong; `record` is what it served and got; `command` is `sikkerguard demo`.
Nothing is imported here: the command line reads `command` at every start and should not pay for a server.
"""
