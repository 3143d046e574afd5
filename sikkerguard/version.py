"""The one place that names the version."""

VERSION = "0.2.0"
