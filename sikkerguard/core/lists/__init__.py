"""Lists: read, admitted, guarded in their size, kept as generations."""
