"""Programs for whoever works on SikkerGuard; `scripts/check` and `scripts/test` come first."""
