"""The laboratory that the demonstration, the benchmarks and the tests share.

`network` makes the namespaces, `resolver` and `api` are servers on their internet, `packets` sends more packets than a
socket could, `unprotected` is the service without its allowlist, `machine` is what laboratories of one machine share.
"""
