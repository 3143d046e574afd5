"""Which service a port stands for, and in which category who looks for it is reported."""
